import { type ChildProcess, spawn } from 'node:child_process'
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { delimiter, dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

export const repository = fileURLToPath(new URL('../../', import.meta.url))

const sources: Readonly<Record<string, string>> = {
  'kernels/one/one.h': 'int one();\n',
  'kernels/one/one.cc': '#include "kernels/one/one.h"\nint one() { return 1; }\n',
  'native/runtime/two.cc': '#include "kernels/one/one.h"\nint two() { return one() + one(); }\n',
  // The C interface compiles in a tenth of the time that node-addon-api takes.
  'native/addon/addon.cc': `#include <node_api.h>
int two();
NAPI_MODULE_INIT() {
  napi_value version, number;
  napi_create_string_utf8(env, NIBBLET_VERSION, NAPI_AUTO_LENGTH, &version);
  napi_create_int32(env, two(), &number);
  napi_set_named_property(env, exports, "version", version);
  napi_set_named_property(env, exports, "two", number);
  return exports;
}
`,
  'sources.json': JSON.stringify({
    kernels: ['kernels/one/one.cc'],
    runtime: ['native/runtime/two.cc'],
    addon: ['native/addon/addon.cc'],
    tests: [],
  }),
}

export interface RunResult {
  code: number | null
  signal: NodeJS.Signals | null
  stdout: string
  stderr: string
  milliseconds: number
}

/** A small project with the repository's own set-up and build files, in a temporary folder. */
export class Fixture {
  readonly root = mkdtempSync(join(tmpdir(), 'nibblet-setup-'))
  readonly #children: ChildProcess[] = []

  /** `checkout` adds what makes it a checkout (lock file, lib); without, it is like an installed package. */
  constructor({ checkout = false } = {}) {
    for (const name of ['CMakeLists.txt', 'binding.gyp', 'package.json', 'tsconfig.json', 'tools']) {
      cpSync(join(repository, name), join(this.root, name), { recursive: true })
    }
    for (const [path, text] of Object.entries(sources)) this.write(path, text)
    if (checkout) {
      cpSync(join(repository, 'package-lock.json'), join(this.root, 'package-lock.json'))
      this.write('lib/index.ts', 'export const answer: number = 938\n')
    }
    linkPackages(this.root)
  }

  write(path: string, text: string): void {
    mkdirSync(dirname(join(this.root, path)), { recursive: true })
    writeFileSync(join(this.root, path), text)
  }

  read(path: string): string {
    return readFileSync(join(this.root, path), 'utf8')
  }

  /** A script to take for npm's; by default one that fails. */
  npm(text = 'process.exit(9)', folder = 'failing'): string {
    this.write(`${folder}/npm-cli.cjs`, text)
    return join(this.root, folder, 'npm-cli.cjs')
  }

  /** Starts set-up, or another script of tools; `result` resolves when it has ended. */
  start(
    env: NodeJS.ProcessEnv = {},
    nodeOptions: string[] = [],
    script = 'setup.mjs',
  ): { child: ChildProcess; result: Promise<RunResult> } {
    const started = performance.now()
    const child = spawn(process.execPath, [...nodeOptions, join(this.root, 'tools', script)], {
      // No test may reach the real npm unless it means to.
      env: { ...cleanEnvironment(), npm_execpath: this.npm(), ...env },
      stdio: ['ignore', 'pipe', 'pipe'],
    })
    this.#children.push(child)
    let stdout = ''
    let stderr = ''
    child.stdout.on('data', (data) => {
      stdout += data
    })
    child.stderr.on('data', (data) => {
      stderr += data
    })
    const result = new Promise<RunResult>((resolve, reject) => {
      child.once('error', reject)
      // Not 'close': what set-up started may outlive it, holding the pipe.
      child.once('exit', (code, signal) =>
        setTimeout(() => resolve({ code, signal, stdout, stderr, milliseconds: performance.now() - started }), 50),
      )
    })
    return { child, result }
  }

  setup(env: NodeJS.ProcessEnv = {}, nodeOptions: string[] = []): Promise<RunResult> {
    return this.start(env, nodeOptions).result
  }

  /** Loads the built addon in a process of its own and returns what it exports as `two`. */
  async loadAddon(): Promise<string> {
    const script = `console.log(require(${JSON.stringify(join(this.root, 'build/Release/nibblet.node'))}).two)`
    const child = spawn(process.execPath, ['-e', script], { stdio: ['ignore', 'pipe', 'inherit'] })
    let stdout = ''
    for await (const data of child.stdout) stdout += data
    return stdout.trim()
  }

  /** A folder with every program of PATH except those named, for use as PATH. */
  pathWithout(...names: string[]): string {
    const folder = join(this.root, `path-without-${names.join('-')}`)
    if (existsSync(folder)) return folder
    mkdirSync(folder)
    const seen = new Set(names)
    for (const entry of (process.env.PATH ?? '').split(delimiter)) {
      for (const name of readNames(entry)) {
        if (seen.has(name)) continue
        seen.add(name)
        symlinkSync(join(entry, name), join(folder, name))
      }
    }
    return folder
  }

  /**
   * A compiler that waits before it compiles a file whose name has `slow` in it, for as long as the file `gate` exists.
   */
  slowCompiler(): { cxx: string; gate: string } {
    const cxx = join(this.root, 'slow-c++')
    const gate = join(this.root, 'gate')
    const wait = `case "$*" in *slow.cc) while [ -e '${gate}' ]; do sleep 0.05; done;; esac`
    writeFileSync(cxx, `#!/bin/sh\n${wait}\nexec c++ "$@"\n`, { mode: 0o755 })
    writeFileSync(gate, '')
    this.write('kernels/one/slow.cc', 'int slow() { return 3; }\n')
    const list = JSON.parse(this.read('sources.json'))
    list.kernels.push('kernels/one/slow.cc')
    this.write('sources.json', JSON.stringify(list))
    return { cxx, gate }
  }

  dispose(): void {
    for (const child of this.#children) child.kill('SIGKILL')
    rmSync(this.root, { recursive: true, force: true, maxRetries: 5, retryDelay: 200 })
  }
}

/**
 * Fills node_modules with links to the repository's packages. It is a folder, not a link to the repository's: `npm ci`
 * empties what a link points to.
 */
export function linkPackages(root: string): void {
  const from = join(repository, 'node_modules')
  mkdirSync(join(root, 'node_modules'))
  for (const name of readdirSync(from)) {
    if (name.startsWith('.') && name !== '.package-lock.json') continue
    symlinkSync(join(from, name), join(root, 'node_modules', name))
  }
}

function readNames(folder: string): string[] {
  try {
    return readdirSync(folder)
  } catch {
    return []
  }
}

/** The environment without what would steer set-up. */
function cleanEnvironment(): NodeJS.ProcessEnv {
  const steering = /^(NIBBLET_|CXX|CXXFLAGS|LDFLAGS|CUDA|NVCC|npm_)/
  return Object.fromEntries(Object.entries(process.env).filter(([name]) => !steering.test(name)))
}

/** Resolves once `condition` holds; throws after ten seconds. */
export async function until(condition: () => boolean): Promise<void> {
  const deadline = Date.now() + 10_000
  while (!condition()) {
    if (Date.now() > deadline) throw new Error('waited ten seconds in vain')
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
}
