import { copyFileSync, mkdirSync, readdirSync, rmSync, statSync } from 'node:fs'
import { join } from 'node:path'

/** Copies the plain files of a folder that are not huge; what else was in it is told by the case's description. */
export function keepFiles(from: string, to: string): void {
  rmSync(to, { recursive: true, force: true })
  mkdirSync(to, { recursive: true })
  for (const entry of readdirSync(from, { withFileTypes: true })) {
    const file = join(from, entry.name)
    if (entry.isFile() && statSync(file).size < 2 ** 26) copyFileSync(file, join(to, entry.name))
  }
}
