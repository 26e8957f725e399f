// Formats the C++ sources that git knows, or with --check only reports what would change. Every release of clang-format
// decides some cases differently, so one release is installed from the Python package registry into .cache.
import { execFileSync, spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

const version = '21.1.8'
const root = fileURLToPath(new URL('../', import.meta.url))
const folder = `.cache/clang-format-${version}`
const program = `${folder}/bin/clang-format`

if (!existsSync(root + program)) {
  run('python3', ['-m', 'venv', folder])
  run(`${folder}/bin/pip`, ['install', '--quiet', '--disable-pip-version-check', `clang-format==${version}`])
}
const listed = execFileSync('git', ['ls-files', '*.h', '*.cc', '*.cu', '*.cuh'], { cwd: root, encoding: 'utf8' })
const files = listed.split('\n').filter((file) => file !== '' && existsSync(root + file))
run(program, [...(process.argv.includes('--check') ? ['--dry-run', '-Werror'] : ['-i']), ...files])

function run(command, args) {
  const { status, error } = spawnSync(command, args, { cwd: root, stdio: 'inherit' })
  if (error !== undefined) throw error
  if (status !== 0) process.exit(status ?? 1)
}
