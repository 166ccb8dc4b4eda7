import { index, integer, primaryKey, sqliteTable, text, uniqueIndex } from 'drizzle-orm/sqlite-core'

/** The tables as the newest migration leaves them; the migrations alone create them. */
export const resources = sqliteTable(
  'resources',
  {
    id: text('id').notNull().primaryKey(),
    kind: text('kind').notNull(),
    workspace: text('workspace').notNull(),
    name: text('name').notNull(),
    version: integer('version').notNull(),
    createdAt: integer('created_at').notNull(),
    updatedAt: integer('updated_at').notNull(),
    /** JSON object of index name -> value. */
    indexes: text('indexes').notNull(),
    /** JSON. */
    body: text('body').notNull(),
  },
  (table) => [
    uniqueIndex('resources_by_key').on(table.kind, table.workspace, table.name),
    index('resources_by_creation').on(table.kind, table.workspace, table.createdAt, table.id),
    index('resources_by_creation_anywhere').on(table.kind, table.createdAt, table.id),
  ],
)

/** Follows `resources.indexes` by trigger. */
export const resourceIndexes = sqliteTable(
  'resource_indexes',
  {
    kind: text('kind').notNull(),
    name: text('name').notNull(),
    value: text('value').notNull(),
    createdAt: integer('created_at').notNull(),
    resourceId: text('resource_id').notNull(),
    workspace: text('workspace').notNull(),
  },
  (table) => [
    primaryKey({ columns: [table.kind, table.name, table.value, table.createdAt, table.resourceId] }),
    index('resource_indexes_by_resource').on(table.resourceId, table.name),
  ],
)

export type ResourceRow = typeof resources.$inferSelect
