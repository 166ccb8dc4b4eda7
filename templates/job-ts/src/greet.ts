/** What the job does. Make it your own. */
export async function greet(name: string): Promise<string> {
  return `${process.env.GREETING ?? 'Hello'}, ${name}!`
}
