import { Database, type Statement } from 'bun:sqlite'
import { and, asc, count, desc, eq, gte, inArray, lte, type SQLWrapper, sql } from 'drizzle-orm'
import { drizzle } from 'drizzle-orm/bun-sqlite'
import { alias } from 'drizzle-orm/sqlite-core'
import type { PageQuery, ResourceKey, SortOrder } from '../../spec/store.ts'
import type { Position } from './cursor.ts'
import { type ResourceRow, resourceIndexes, resources } from './schema.ts'
import { WorkReader } from './work-reader.ts'

/** The read side: a read-only connection on the caller's thread, every statement prepared once. */
export type Reader = ReturnType<typeof openReader>

type Filter = Pick<PageQuery, 'kind' | 'workspace' | 'where' | 'since' | 'until'>

/** Of a query: what its statement depends on. */
interface Shape {
  inWorkspace: boolean
  filters: number
  since: boolean
  until: boolean
}

export function openReader(path: string) {
  const database = new Database(path, { readonly: true })
  const statements = keepStatements(database)
  const db = drizzle(database, { schema: { resources, resourceIndexes } })

  const indexed = alias(resourceIndexes, 'filter')

  const getRow = db
    .select()
    .from(resources)
    .where(
      and(
        eq(resources.kind, sql.placeholder('kind')),
        eq(resources.workspace, sql.placeholder('workspace')),
        eq(resources.name, sql.placeholder('name')),
      ),
    )
    .prepare()

  const findRows = (inWorkspace: boolean) =>
    db
      .select({ row: resources })
      .from(resourceIndexes)
      .innerJoin(resources, eq(resources.id, resourceIndexes.resourceId))
      .where(
        and(
          eq(resourceIndexes.kind, sql.placeholder('kind')),
          eq(resourceIndexes.name, sql.placeholder('index')),
          eq(resourceIndexes.value, sql.placeholder('value')),
          inWorkspace ? eq(resourceIndexes.workspace, sql.placeholder('workspace')) : undefined,
        ),
      )
      .orderBy(desc(resourceIndexes.createdAt), desc(resourceIndexes.resourceId))
      .limit(sql.placeholder('limit'))
      .prepare()
  const findAnywhere = findRows(false)
  const findInWorkspace = findRows(true)

  const countRows = (inWorkspace: boolean) =>
    db
      .select({ total: count() })
      .from(resources)
      .where(
        and(
          eq(resources.kind, sql.placeholder('kind')),
          inWorkspace ? eq(resources.workspace, sql.placeholder('workspace')) : undefined,
        ),
      )
      .prepare()
  const countAnywhere = countRows(false)
  const countInWorkspace = countRows(true)

  // A list as one JSON parameter: one statement for lists of any length.
  const valuesOf = (filter: number) =>
    sql`(SELECT value FROM json_each(${sql.placeholder(`values${filter}`)}))`
  const having = (id: SQLWrapper, filter: number) => {
    const found = db
      .select({ id: indexed.resourceId })
      .from(indexed)
      .where(
        and(
          eq(indexed.resourceId, id),
          eq(indexed.name, sql.placeholder(`index${filter}`)),
          inArray(indexed.value, valuesOf(filter)),
        ),
      )
    return sql`EXISTS ${found}`
  }
  const among = (table: typeof resources | typeof resourceIndexes, { inWorkspace, since, until }: Shape) => [
    eq(table.kind, sql.placeholder('kind')),
    inWorkspace ? eq(table.workspace, sql.placeholder('workspace')) : undefined,
    since ? gte(table.createdAt, sql.placeholder('since')) : undefined,
    until ? lte(table.createdAt, sql.placeholder('until')) : undefined,
  ]

  const preparePage = (sort: SortOrder, shape: Shape, after: boolean) => {
    const byName = sort.startsWith('name:')
    // Both pairs are unique, so that a page has one place where it ends.
    const keys = byName ? [resources.name, resources.workspace] : [resources.createdAt, resources.id]
    const ascending = sort.endsWith(':asc')
    const behind = after
      ? sql`(${keys[0]}, ${keys[1]}) ${sql.raw(ascending ? '>' : '<')} (${sql.placeholder('key')}, ${sql.placeholder('tie')})`
      : undefined
    return db
      .select()
      .from(resources)
      .where(
        and(...among(resources, shape), ...filtersOf(shape, 0).map((at) => having(resources.id, at)), behind),
      )
      .orderBy(...keys.map((key) => (ascending ? asc(key!) : desc(key!))))
      .limit(sql.placeholder('limit'))
      .offset(sql.placeholder('offset'))
      .prepare()
  }
  /** By the first filter's index alone, which says of each resource where and when it was made. */
  const prepareCount = (shape: Shape) => {
    if (shape.filters === 0) {
      return db
        .select({ total: count() })
        .from(resources)
        .where(and(...among(resources, shape)))
        .prepare()
    }
    return db
      .select({ total: count() })
      .from(resourceIndexes)
      .where(
        and(
          ...among(resourceIndexes, shape),
          eq(resourceIndexes.name, sql.placeholder('index0')),
          inArray(resourceIndexes.value, valuesOf(0)),
          ...filtersOf(shape, 1).map((at) => having(resourceIndexes.resourceId, at)),
        ),
      )
      .prepare()
  }
  /** By shape: as many as sorts x workspace x cursor x times x pageFiltersMax at most. */
  const pages = new Map<string, ReturnType<typeof preparePage>>()
  const counts = new Map<string, ReturnType<typeof prepareCount>>()

  const begin = database.prepare('BEGIN')
  // What a transaction sees is settled by its first look.
  const look = database.prepare('SELECT 1 FROM sqlite_schema')
  const end = database.prepare('COMMIT')

  let isHeld = false
  let isClosed = false

  return {
    work: new WorkReader(database),

    get(key: ResourceKey): ResourceRow | undefined {
      return getRow.get({ kind: key.kind, workspace: key.workspace, name: key.name })
    },

    find(query: {
      kind: string
      workspace?: string
      index: string
      value: string
      limit: number
    }): ResourceRow[] {
      const { kind, workspace, index, value, limit } = query
      const found =
        workspace === undefined
          ? findAnywhere.all({ kind, index, value, limit })
          : findInWorkspace.all({ kind, workspace, index, value, limit })
      return found.map(({ row }) => row)
    },

    /** At most `limit` rows after `after`, and how many there are of the kind, as of one moment. */
    page(query: PageQuery, sort: SortOrder, after: Position | null, limit: number) {
      const { kind, workspace, offset = 0 } = query
      const shape = shapeOf(query)
      const key = `${sort} ${after !== null} ${JSON.stringify(shape)}`
      let statement = pages.get(key)
      if (!statement) {
        statement = preparePage(sort, shape, after !== null)
        pages.set(key, statement)
      }
      const parameters = { ...parametersOf(query), limit, offset, key: after?.[0], tie: after?.[1] }
      if (!isHeld) begin.run()
      try {
        const rows = statement.all(parameters)
        const totals =
          workspace === undefined ? countAnywhere.get({ kind }) : countInWorkspace.get({ kind, workspace })
        return { rows, total: totals?.total ?? 0 }
      } finally {
        if (!isHeld) end.run()
      }
    },

    /** How many match, whatever page they are on. */
    count(query: Filter): number {
      const shape = shapeOf(query)
      const key = JSON.stringify(shape)
      let statement = counts.get(key)
      if (!statement) {
        statement = prepareCount(shape)
        counts.set(key, statement)
      }
      return statement.get(parametersOf(query))?.total ?? 0
    },

    /** What is read until `letGo` is what is there now. */
    hold(): void {
      if (isClosed || isHeld) return
      begin.run()
      isHeld = true
      try {
        look.get()
      } catch {
        // Nothing can be read at the moment, as the next one who tries is told.
        this.letGo()
      }
    },

    letGo(): void {
      if (isClosed || !isHeld) return
      isHeld = false
      end.run()
    },

    close(): void {
      isClosed = true
      for (const statement of statements) statement.finalize()
      database.close()
    },
  }
}

function filtersOf({ filters }: Shape, from: number): number[] {
  return Array.from({ length: filters - from }, (_, at) => from + at)
}

function shapeOf({ workspace, where = {}, since, until }: Filter): Shape {
  return {
    inWorkspace: workspace !== undefined,
    filters: Object.keys(where).length,
    since: since !== undefined,
    until: until !== undefined,
  }
}

function parametersOf({ kind, workspace, where = {}, since, until }: Filter): Record<string, unknown> {
  const parameters: Record<string, unknown> = { kind, workspace, since, until }
  for (const [filter, [index, value]] of Object.entries(where).entries()) {
    parameters[`index${filter}`] = index
    parameters[`values${filter}`] = JSON.stringify(Array.isArray(value) ? value : [value])
  }
  return parameters
}

/**
 * Every statement that drizzle prepares. It finalizes none, and with one left SQLite keeps a closed connection half
 * open, which would keep the writer from folding the log away.
 */
function keepStatements(database: Database): Statement[] {
  const statements: Statement[] = []
  const prepare = database.prepare.bind(database)
  database.prepare = ((text: string) => {
    const statement = prepare(text)
    statements.push(statement as Statement)
    return statement
  }) as typeof database.prepare
  return statements
}
