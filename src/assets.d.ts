/** The native helper as a file import: a path. */
declare module '*/hutch-helper' {
  const path: string
  export default path
}
