import { fileURLToPath } from 'node:url'
import { findStale } from './stale.mjs'

/** Brings packages, addon and `dist` up to date. Prints nothing, and loads nothing more, when all of them are fresh. */
export async function main() {
  const root = fileURLToPath(new URL('../../', import.meta.url))
  const { packages, addon, scripts } = findStale(root)
  if (packages || addon || scripts) {
    const { update } = await import('./update.mjs')
    process.exitCode = await update(root)
  }
}
