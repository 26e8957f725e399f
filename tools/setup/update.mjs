import { buildAddon } from './addon.mjs'
import { compileScripts } from './javascript.mjs'
import { installPackages } from './packages.mjs'
import { Progress } from './progress.mjs'
import { findStale } from './stale.mjs'
import { exclusively, say } from './turn.mjs'

/** Does what is stale. Resolves to the exit code. */
export function update(root) {
  const started = Date.now()
  return exclusively(root, async () => {
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
  })
}

async function withProgress(label, work) {
  const progress = new Progress(label)
  try {
    await work(progress)
  } finally {
    progress.end()
  }
}
