// Builds the plain test program with the CUDA code on the emulator (test/emulator) and runs it with the arguments given.
// NIBBLET_SANITIZE=thread|address|undefined builds it with that sanitizer.
import { spawnSync } from 'node:child_process'
import { availableParallelism } from 'node:os'
import { fileURLToPath } from 'node:url'

const root = fileURLToPath(new URL('../', import.meta.url))
const sanitizer = process.env.NIBBLET_SANITIZE ?? ''
const folder = `build/test-emulated${sanitizer === '' ? '' : `-${sanitizer}`}`
const werror = process.env.NIBBLET_WERROR ? 'ON' : 'OFF'

run('cmake', ['-S', '.', '-B', folder, `-DNIBBLET_SANITIZE=${sanitizer}`, `-DNIBBLET_WERROR=${werror}`])
run('cmake', ['--build', folder, '--target', 'nibblet-test-emulated', '--parallel', String(availableParallelism())])
run(`${folder}/nibblet-test-emulated`, process.argv.slice(2))

function run(command, args) {
  const { status, error } = spawnSync(command, args, { cwd: root, stdio: 'inherit' })
  if (error !== undefined) throw error
  if (status !== 0) process.exit(status ?? 1)
}
