import { join } from 'node:path'
import { buildAddon } from './addon.mjs'
import { handleSignals, onProcessGroup, signalExitCode } from './child.mjs'
import { compileScripts } from './javascript.mjs'
import { Lock } from './lock.mjs'
import { installPackages } from './packages.mjs'
import { Progress } from './progress.mjs'
import { Interrupted, SetupError } from './setup-error.mjs'
import { findStale } from './stale.mjs'

/** Does what is stale, alone among the runs of set-up on this folder. Resolves to the exit code. */
export async function update(root) {
  handleSignals()
  const lock = new Lock(join(root, 'build/.setup.lock'))
  const started = Date.now()
  try {
    await lock.acquire((pid) => say(`waiting for the set-up that process ${pid} is running`))
    onProcessGroup((group) => lock.setGroup(group))
    // The run that held the lock may have done all of it.
    const stale = findStale(root)
    if (stale.packages) {
      say('[1/2] packages')
      await installPackages(root)
    }
    if (stale.addon) await withProgress('[2/2] native code', (progress) => buildAddon(root, progress))
    if (stale.scripts) {
      say('[2/2] TypeScript')
      await compileScripts(root)
    }
    if (stale.packages || stale.addon || stale.scripts)
      say(`set-up took ${((Date.now() - started) / 1000).toFixed(1)} s`)
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

async function withProgress(label, work) {
  const progress = new Progress(label)
  try {
    await work(progress)
  } finally {
    progress.end()
  }
}

function say(line) {
  process.stderr.write(`${line}\n`)
}
