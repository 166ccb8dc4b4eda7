import { Database, type Statement } from 'bun:sqlite'
import { and, asc, count, desc, eq, inArray, type SQL, sql } from 'drizzle-orm'
import { drizzle } from 'drizzle-orm/bun-sqlite'
import type { PageQuery, ResourceKey, SortOrder } from '../../spec/store.ts'
import type { Position } from './cursor.ts'
import { type ResourceRow, resourceIndexes, resources } from './schema.ts'
import { WorkReader } from './work-reader.ts'

/** The read side: a read-only connection on the caller's thread, every statement prepared once. */
export type Reader = ReturnType<typeof openReader>

export function openReader(path: string) {
  const database = new Database(path, { readonly: true })
  const statements = keepStatements(database)
  const db = drizzle(database, { schema: { resources, resourceIndexes } })

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

  const preparePage = (sort: SortOrder, inWorkspace: boolean, after: boolean, filters: number) => {
    const byName = sort.startsWith('name:')
    // Both pairs are unique, so that a page has one place where it ends.
    const keys = byName ? [resources.name, resources.workspace] : [resources.createdAt, resources.id]
    const ascending = sort.endsWith(':asc')
    const conditions: (SQL | undefined)[] = [
      eq(resources.kind, sql.placeholder('kind')),
      inWorkspace ? eq(resources.workspace, sql.placeholder('workspace')) : undefined,
      after
        ? sql`(${keys[0]}, ${keys[1]}) ${sql.raw(ascending ? '>' : '<')} (${sql.placeholder('key')}, ${sql.placeholder('tie')})`
        : undefined,
    ]
    for (let filter = 0; filter < filters; filter++) {
      // A list as one JSON parameter: one statement for lists of any length.
      const values = sql`(SELECT value FROM json_each(${sql.placeholder(`values${filter}`)}))`
      const matching = db
        .select({ id: resourceIndexes.resourceId })
        .from(resourceIndexes)
        .where(
          and(
            eq(resourceIndexes.resourceId, resources.id),
            eq(resourceIndexes.name, sql.placeholder(`index${filter}`)),
            inArray(resourceIndexes.value, values),
          ),
        )
      conditions.push(sql`EXISTS ${matching}`)
    }
    return db
      .select()
      .from(resources)
      .where(and(...conditions))
      .orderBy(...keys.map((key) => (ascending ? asc(key!) : desc(key!))))
      .limit(sql.placeholder('limit'))
      .prepare()
  }
  /** By shape: as many as sorts x workspace x cursor x pageFiltersMax at most. */
  const pages = new Map<string, ReturnType<typeof preparePage>>()

  const begin = database.prepare('BEGIN')
  const end = database.prepare('COMMIT')

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
      const { kind, workspace } = query
      const filters = Object.entries(query.where ?? {})
      const shape = `${sort} ${workspace !== undefined} ${after !== null} ${filters.length}`
      let statement = pages.get(shape)
      if (!statement) {
        statement = preparePage(sort, workspace !== undefined, after !== null, filters.length)
        pages.set(shape, statement)
      }
      const parameters: Record<string, unknown> = { kind, workspace, limit, key: after?.[0], tie: after?.[1] }
      for (const [filter, [index, value]] of filters.entries()) {
        parameters[`index${filter}`] = index
        parameters[`values${filter}`] = JSON.stringify(Array.isArray(value) ? value : [value])
      }
      begin.run()
      try {
        const rows = statement.all(parameters)
        const totals =
          workspace === undefined ? countAnywhere.get({ kind }) : countInWorkspace.get({ kind, workspace })
        return { rows, total: totals?.total ?? 0 }
      } finally {
        end.run()
      }
    },

    close(): void {
      for (const statement of statements) statement.finalize()
      database.close()
    },
  }
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
