import { interpreterProgram } from './interpreter/index.ts'

/** The well-known names: each stands for the host image, which carries the host's own node, python3 and git. */
export interface CatalogueEntry {
  /** Without tag, e.g. `blaxel/base-image`. */
  name: string
  title: string
  summary: string
  categories: string[]
  /** Ports that programs of this image usually listen on. */
  ports: { name: string; target: number; protocol: string }[]
  /** What runs in it from its start, and the port that it is there for. */
  program?: { argv: string[]; port: number }
}

const httpPort = (name: string, target: number) => ({ name, target, protocol: 'HTTP' })

export const catalogue: readonly CatalogueEntry[] = [
  {
    name: 'blaxel/base-image',
    title: 'Base image',
    summary: 'The host image: shell, and node, python3 and git of the host',
    categories: ['general'],
    ports: [],
  },
  {
    name: 'blaxel/node',
    title: 'Node.js',
    summary: 'Node.js of the host',
    categories: ['node'],
    ports: [httpPort('app', 3000)],
  },
  {
    name: 'blaxel/node-slim',
    title: 'Node.js',
    summary: 'Node.js of the host',
    categories: ['node'],
    ports: [httpPort('app', 3000)],
  },
  {
    name: 'blaxel/ts-app',
    title: 'TypeScript application',
    summary: 'TypeScript and Node.js applications',
    categories: ['node'],
    ports: [httpPort('app', 3000)],
  },
  {
    name: 'blaxel/dev-ts-app',
    title: 'TypeScript application',
    summary: 'TypeScript and Node.js applications',
    categories: ['node'],
    ports: [httpPort('app', 3000)],
  },
  {
    name: 'blaxel/py-app',
    title: 'Python application',
    summary: 'Python applications',
    categories: ['python'],
    ports: [httpPort('app', 8000)],
  },
  {
    name: 'blaxel/nextjs',
    title: 'Next.js',
    summary: 'Next.js applications, on Node.js of the host',
    categories: ['node', 'web'],
    ports: [httpPort('preview', 3000)],
  },
  {
    name: 'blaxel/vite',
    title: 'Vite',
    summary: 'Vite applications, on Node.js of the host',
    categories: ['node', 'web'],
    ports: [httpPort('preview', 5173)],
  },
  {
    name: 'blaxel/astro',
    title: 'Astro',
    summary: 'Astro applications, on Node.js of the host',
    categories: ['node', 'web'],
    ports: [httpPort('preview', 4321)],
  },
  {
    name: 'blaxel/expo',
    title: 'Expo',
    summary: 'Expo applications, on Node.js of the host',
    categories: ['node', 'web'],
    ports: [httpPort('preview', 8081)],
  },
  {
    name: 'blaxel/jupyter-server',
    title: 'Code interpreter',
    summary: 'Runs Python, JavaScript and bash of the host for CodeInterpreter, and keeps their variables',
    categories: ['python', 'node'],
    ports: [httpPort('jupyter', interpreterProgram.port)],
    program: interpreterProgram,
  },
]

export function wellKnown(name: string): CatalogueEntry | null {
  return catalogue.find((entry) => entry.name === name) ?? null
}
