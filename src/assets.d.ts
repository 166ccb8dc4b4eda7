/** The native helper as a file import: a path. */
declare module '*/hutch-helper' {
  const path: string
  export default path
}

/** A page that scripts/build-pages.ts made, as text. */
declare module '*/terminal.html' {
  const page: string
  export default page
}
