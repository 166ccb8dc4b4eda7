import { z } from 'zod'
import type { ApiKeys } from '../../access/index.ts'
import type { Member, User, Users } from '../../workspaces/index.ts'
import { type Route, route } from '../route.ts'

const role = z.enum(['admin', 'member'])
const memberAnswer = z.lazy(() =>
  z.object({
    sub: z.string(),
    email: z.string(),
    given_name: z.string(),
    family_name: z.string(),
    role,
    accepted: z.boolean(),
  }),
)
const invitationAnswer = z.lazy(() =>
  z.object({
    email: z.string(),
    role,
    workspace: z.string(),
    invitedBy: z.string(),
    createdAt: z.string(),
    updatedAt: z.string(),
    sub: z.string(),
    apiKey: z.string().optional(),
  }),
)

/**
 * The platform sends no mail. Inviting an address that is new here makes the user and answers with their first API
 * key, once: handing it over is the invitation. Somebody who is a user already is added at once.
 */
export function userRoutes(users: Users, keys: ApiKeys): Route[] {
  const shared = { errors: 'control', tag: 'users' } as const
  const isBlank = async ({ sub }: User) =>
    (await users.rolesOf(sub)).size === 0 && (await keys.list({ sub, workspace: '' })).length === 0
  return [
    route({
      ...shared,
      method: 'GET',
      path: '/v0/users',
      access: 'write',
      summary: 'List the users of the workspace',
      answer: z.array(memberAnswer),
      handle: async ({ workspace }) => (await users.members(workspace)).map(toBody),
    }),
    route({
      ...shared,
      method: 'POST',
      path: '/v0/users',
      access: 'admin',
      summary: 'Add a user to the workspace; a new one comes with an API key',
      body: z.object({
        email: z.email().max(254),
        role: role.optional(),
        given_name: z.string().max(100).optional(),
        family_name: z.string().max(100).optional(),
      }),
      answer: invitationAnswer,
      async handle({ workspace, body, principal }) {
        const joined = body.role ?? 'member'
        const known = await users.getByEmail(body.email)
        // Nobody has a key of theirs yet, and nothing is theirs: an invitation that was cut short is made anew.
        const isNew = known === null || (await isBlank(known))
        if (known !== null) await users.add(workspace, known.sub, joined)
        const user =
          known ??
          (await users.createIn(
            workspace,
            {
              email: body.email,
              givenName: body.given_name,
              familyName: body.family_name,
            },
            joined,
          ))
        const member = await users.member(workspace, user.sub)
        const first = isNew
          ? await keys.create({
              sub: user.sub,
              subType: 'user',
              workspace: '',
              name: 'invitation',
              createdBy: principal!.id,
            })
          : null
        const at = new Date(member.createdAt).toISOString()
        const invitation = { email: user.email, role: member.role, workspace, invitedBy: principal!.id }
        return {
          ...invitation,
          sub: user.sub,
          createdAt: at,
          updatedAt: at,
          ...(first !== null && { apiKey: first.key }),
        }
      },
    }),
    route({
      ...shared,
      method: 'PUT',
      path: '/v0/users/{subOrEmail}',
      access: 'admin',
      summary: "Change a user's role in the workspace",
      body: z.object({ role }),
      answer: memberAnswer,
      handle: async ({ workspace, params, body }) =>
        toBody(await users.setRole(workspace, params.subOrEmail, body.role)),
    }),
    route({
      ...shared,
      method: 'DELETE',
      path: '/v0/users/{subOrEmail}',
      access: 'admin',
      summary: 'Remove a user from the workspace',
      answer: memberAnswer,
      handle: async ({ workspace, params }) => toBody(await users.remove(workspace, params.subOrEmail)),
    }),
  ]
}

function toBody({ sub, email, givenName, familyName, role }: Member): object {
  return { sub, email, given_name: givenName, family_name: familyName, role, accepted: true }
}
