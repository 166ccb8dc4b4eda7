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

/** What scripts/build-templates.ts packed, as text. */
declare module '*/templates.packed' {
  const packed: string
  export default packed
}

/** What the interpreter in images is made of, as text. */
declare module '*/kernel.bash' {
  const text: string
  export default text
}
declare module '*/kernel.mjs' {
  const text: string
  export default text
}
declare module '*/kernel.py' {
  const text: string
  export default text
}
declare module '*/server.py' {
  const text: string
  export default text
}

/** What runs inside the machine of a build, as text. */
declare module '*/pack.mjs' {
  const text: string
  export default text
}
declare module '*/bundle.mjs' {
  const text: string
  export default text
}
declare module '*/needs.mjs' {
  const text: string
  export default text
}
