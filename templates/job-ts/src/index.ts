import { greet } from './greet.ts'
import { startTask } from './task.ts'

// Run once for each task of an execution, with what that task was given. What it throws makes the task fail.
startTask(async ({ name = 'nobody' }: { name?: string }) => {
  console.log(await greet(name))
})
