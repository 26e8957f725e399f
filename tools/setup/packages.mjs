import { lstatSync } from 'node:fs'
import { join } from 'node:path'
import { run } from './child.mjs'
import { npmScript } from './npm.mjs'
import { SetupError } from './setup-error.mjs'

/** Installs exactly what the lock file names. npm clears a half-done installation itself when it runs again. */
export async function installPackages(root) {
  const folder = join(root, 'node_modules')
  if (lstatSync(folder, { throwIfNoEntry: false })?.isSymbolicLink()) {
    throw new SetupError(
      `${folder} is a link, and npm ci would empty the folder behind it: remove the link, then run the same command again.`,
    )
  }
  const args = [npmScript(), 'ci', '--include=dev', '--no-audit', '--no-fund']
  const { code } = await run(process.execPath, args, { cwd: root })
  if (code !== 0) {
    throw new SetupError(
      `npm ci failed with exit code ${code} for the reason above: mend it, then run the same command again.`,
    )
  }
}
