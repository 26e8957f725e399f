import { join } from 'node:path'
import { handleSignals, onProcessGroup, signalExitCode } from './child.mjs'
import { Lock } from './lock.mjs'
import { Interrupted, SetupError } from './setup-error.mjs'

/**
 * Does the work alone among the runs of set-up on this folder, with signals and explained failures told in one
 * sentence. Resolves to the exit code.
 */
export async function exclusively(root, work) {
  handleSignals()
  const lock = new Lock(join(root, 'build/.setup.lock'))
  try {
    await lock.acquire((pid) => say(`waiting for the set-up that process ${pid} is running`))
    onProcessGroup((group) => lock.setGroup(group))
    await work()
    return 0
  } catch (error) {
    if (error instanceof Interrupted) {
      say('set-up was stopped: the next run goes on from here')
      return signalExitCode()
    }
    if (!(error instanceof SetupError)) throw error
    say(error.message)
    return 1
  } finally {
    onProcessGroup(() => {})
    lock.release()
  }
}

export function say(line) {
  process.stderr.write(`${line}\n`)
}
