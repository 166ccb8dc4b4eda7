/** `fields` without those that are undefined. */
export function defined<Fields extends Record<string, unknown>>(fields: Fields): DefinedFields<Fields> {
  return Object.fromEntries(
    Object.entries(fields).filter(([, value]) => value !== undefined),
  ) as DefinedFields<Fields>
}
type DefinedFields<Fields> = { [Name in keyof Fields]?: Exclude<Fields[Name], undefined> }

/** What an update makes of a field. Left out: as before. Null: cleared. */
export function kept<Given, Stored>(
  given: Given | null | undefined,
  previous: Stored | undefined,
  read: (given: Given) => Stored,
): Stored | undefined {
  if (given === undefined) return previous
  return given === null ? undefined : read(given)
}
