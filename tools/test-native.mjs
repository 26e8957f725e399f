// Builds the plain test program of the kernels and the runtime with CMake, without Node in it, and runs it with the
// arguments given. NIBBLET_SANITIZE=thread|address|undefined builds it with that sanitizer.
import { spawnSync } from 'node:child_process'
import { availableParallelism } from 'node:os'
import { fileURLToPath } from 'node:url'

const root = fileURLToPath(new URL('../', import.meta.url))
const sanitizer = process.env.NIBBLET_SANITIZE ?? ''
const folder = `build/test${sanitizer === '' ? '' : `-${sanitizer}`}`
const werror = process.env.NIBBLET_WERROR ? 'ON' : 'OFF'

run('cmake', ['-S', '.', '-B', folder, `-DNIBBLET_SANITIZE=${sanitizer}`, `-DNIBBLET_WERROR=${werror}`])
run('cmake', ['--build', folder, '--target', 'nibblet-test', '--parallel', String(availableParallelism())])
run(`${folder}/nibblet-test`, process.argv.slice(2))

function run(command, args) {
  const { status, error } = spawnSync(command, args, { cwd: root, stdio: 'inherit' })
  if (error !== undefined) throw error
  if (status !== 0) process.exit(status ?? 1)
}
