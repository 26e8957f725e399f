// The build against the emulator of test/emulator, for tools/test-emulated.mjs and tools/test-emulated-addon.mjs.
// NIBBLET_SANITIZE=thread|address|undefined builds with that sanitizer.
import { spawnSync } from 'node:child_process'
import { availableParallelism } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = fileURLToPath(new URL('../', import.meta.url))

/** Builds one target. @returns the folder of the build */
export function build(target) {
  const sanitizer = process.env.NIBBLET_SANITIZE ?? ''
  const folder = `build/test-emulated${sanitizer === '' ? '' : `-${sanitizer}`}`
  const werror = process.env.NIBBLET_WERROR ? 'ON' : 'OFF'
  run('cmake', ['-S', '.', '-B', folder, `-DNIBBLET_SANITIZE=${sanitizer}`, `-DNIBBLET_WERROR=${werror}`])
  run('cmake', ['--build', folder, '--target', target, '--parallel', String(availableParallelism())])
  return join(root, folder)
}

/** Runs a command in the checkout, and ends this process when it fails. */
export function run(command, args, variables = {}) {
  const env = { ...process.env, ...variables }
  const { status, error } = spawnSync(command, args, { cwd: root, stdio: 'inherit', env })
  if (error !== undefined) throw error
  if (status !== 0) process.exit(status ?? 1)
}
