/** Whether a flag in an environment variable is up: anything but nothing, `0` and `false`. */
export function isSet(value: string | undefined): boolean {
  return !['', '0', 'false'].includes((value ?? '').toLowerCase())
}
