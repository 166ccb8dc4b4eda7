import { agentProgram, hosting } from './hosting-client.ts'
import type { Row } from './measure.ts'

const requestsMin = 10_000
const deploys = 5
const clients = 8

/** Requests without a pause while revision after revision takes over, and an old one again at the end. */
export default async function main(): Promise<Row[]> {
  await using agent = await hosting()
  await agent.deploy(programOf(0))
  const failures: string[] = []
  const answers = new Map<string, number>()
  let asked = 0
  let deployed = false
  const client = async () => {
    while (!deployed || asked < requestsMin) {
      asked++
      try {
        const said = await agent.ask('/')
        answers.set(said, (answers.get(said) ?? 0) + 1)
      } catch (error) {
        failures.push(error instanceof Error ? error.message : String(error))
      }
    }
  }
  const loading = Promise.all(Array.from({ length: clients }, client))
  const revisions: string[] = []
  for (let index = 1; index <= deploys; index++) {
    revisions.push(await agent.deploy(programOf(index)))
    await answered(answers, `hello ${index}`)
  }
  // The oldest that is kept.
  const before = answers.get('hello 1') ?? 0
  await agent.rollBack(revisions[0] ?? '')
  await answered(answers, 'hello 1', before)
  deployed = true
  await loading
  for (const failure of failures.slice(0, 5)) console.error(failure)
  return [
    {
      what: `requests during ${deploys} deploys and a rollback`,
      value: `${failures.length} of ${asked} failed`,
      baseline: `${answers.size} revisions answered`,
      reach: `0 of >= ${requestsMin}`,
    },
  ]
}

function programOf(index: number): string {
  return agentProgram.replace("Response('hello')", `Response('hello ${index}')`)
}

async function answered(answers: Map<string, number>, text: string, before = 0): Promise<void> {
  while ((answers.get(text) ?? 0) <= before) await Bun.sleep(5)
}
