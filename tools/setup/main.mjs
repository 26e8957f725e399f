import { fileURLToPath } from 'node:url'
import { SetupError } from './setup-error.mjs'
import { findStale } from './stale.mjs'

/** Brings packages, addon and `dist` up to date. Prints nothing, and loads nothing more, when all of them are fresh. */
export async function main() {
  const root = fileURLToPath(new URL('../../', import.meta.url))
  try {
    const { packages, addon, scripts } = findStale(root)
    if (!packages && !addon && !scripts) return
  } catch (error) {
    if (!(error instanceof SetupError)) throw error
    process.stderr.write(`${error.message}\n`)
    process.exitCode = 1
    return
  }
  const { update } = await import('./update.mjs')
  process.exitCode = await update(root)
}
