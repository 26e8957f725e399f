import { execFile } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { promisify } from 'node:util'
import { publint } from 'publint'
import { formatMessage } from 'publint/utils'
import { afterAll, beforeAll, expect, test } from 'vitest'

const run = promisify(execFile)
const root = resolve(import.meta.dirname, '../..')
const manifest = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'))
const consumer = mkdtempSync(join(tmpdir(), 'nibblet-consumer-'))
const binary = join(root, 'build/Release/nibblet.node')

/** What `npm pack` tells about the archive that it made. */
let packed: { filename: string; size: number; files: { path: string }[] }

async function npm(...args: string[]): Promise<string> {
  const { npmScript } = await import(join(root, 'tools/setup/npm.mjs'))
  // Without the variables of the npm that runs the tests, which would steer this one.
  const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith('npm_')))
  const { stdout } = await run(process.execPath, [npmScript(), ...args], { cwd: consumer, env })
  return stdout
}

/** Runs a module in the consumer's folder and returns what it prints. */
async function runModule(text: string, env: NodeJS.ProcessEnv): Promise<string> {
  writeFileSync(join(consumer, 'program.mjs'), text)
  const { NIBBLET_BINARY, ...rest } = process.env
  const { stdout } = await run(process.execPath, ['program.mjs'], { cwd: consumer, env: { ...rest, ...env } })
  return stdout
}

beforeAll(async () => {
  await run(process.execPath, [join(root, 'tools/setup.mjs')])
  mkdirSync(consumer, { recursive: true })
  writeFileSync(join(consumer, 'package.json'), JSON.stringify({ name: 'consumer', private: true, type: 'module' }))
  packed = JSON.parse(await npm('pack', root, '--json', '--ignore-scripts'))[0]
  await npm('install', `./${packed.filename}`, '--ignore-scripts', '--prefer-offline', '--no-audit', '--no-fund')
}, 120_000)

afterAll(() => {
  rmSync(consumer, { recursive: true })
})

test('the archive is under 1 MB', () => {
  expect(packed.size).toBeGreaterThan(10_000)
  expect(packed.size).toBeLessThan(1_000_000)
})

test('the archive holds dist, what a source build needs and the notices, and nothing else', () => {
  const below = (folder: string) =>
    readdirSync(join(root, folder), { recursive: true, withFileTypes: true })
      .filter((entry) => entry.isFile())
      .map((entry) => join(entry.parentPath, entry.name).slice(root.length + 1))
  const compiled = below('lib').flatMap((path) => {
    const stem = path.replace(/^lib\//, 'dist/').replace(/\.ts$/, '')
    return [`${stem}.js`, `${stem}.d.ts`]
  })
  const documents = ['CHANGELOG.md', 'LICENSE', 'NOTICE', 'README.md', 'THIRD_PARTY.md']
  const scripts = ['tools/setup.mjs', 'tools/setup-cuda.mjs', ...below('tools/setup')]
  const build = ['CMakeLists.txt', 'binding.gyp', 'sources.json', ...scripts]
  const expected = ['package.json', ...documents, ...build, ...below('kernels'), ...below('native'), ...compiled]
  expect(packed.files.map(({ path }) => path).sort()).toEqual(expected.sort())
})

test('publint finds nothing', async () => {
  const { messages } = await publint({ pkgDir: root, strict: true, pack: 'npm' })
  expect(messages.map((message) => formatMessage(message, manifest))).toEqual([])
})

test('it installs without scripts, and with its three dependencies only', () => {
  const lock = JSON.parse(readFileSync(join(consumer, 'package-lock.json'), 'utf8'))
  const names = Object.keys(lock.packages).filter((path) => path !== '')
  expect(names.sort()).toEqual([
    'node_modules/@huggingface/jinja',
    'node_modules/@huggingface/tokenizers',
    'node_modules/bindings',
    'node_modules/file-uri-to-path',
    'node_modules/nibblet',
  ])
  expect(lock.packages['node_modules/nibblet'].hasInstallScript).toBeUndefined()
  expect(existsSync(join(consumer, 'node_modules/nibblet/build'))).toBe(false)
})

test('it imports without the addon, and says how to get one when it is needed', async () => {
  const output = await runModule(
    `import { loadModel, NibbletError } from 'nibblet'
    const error = await loadModel(${JSON.stringify(join(root, 'models/tiny'))}).catch((error) => error)
    console.log(NibbletError.is(error), error.code, error.message)`,
    {},
  )
  expect(output).toMatch(/^true NO_BINARY No native addon was found/)
  expect(output).toMatch(/npm install --no-save cmake-js@.* && node .*node_modules\/nibblet\/tools\/setup\.mjs/)
})

test('a consumer type-checks against it', async () => {
  writeFileSync(
    join(consumer, 'consumer.ts'),
    `import { loadModel, NibbletError } from 'nibblet'
    export async function ask(folder: string, signal: AbortSignal): Promise<string> {
      const model = await loadModel(folder, { signal })
      try {
        const reply = await model.chat('What is 291 + 647?')
        return reply.text
      } catch (error) {
        if (NibbletError.is(error)) return error.code
        throw error
      } finally {
        await model.dispose()
      }
    }
    // @ts-expect-error: an unknown option
    export const wrong = loadModel('tiny', { nonsense: true })
    `,
  )
  const options = {
    target: 'ES2022',
    module: 'NodeNext',
    strict: true,
    exactOptionalPropertyTypes: true,
    noEmit: true,
    lib: ['ES2023', 'ESNext.Disposable'],
    types: ['node'],
    typeRoots: [join(root, 'node_modules/@types')],
  }
  writeFileSync(join(consumer, 'tsconfig.json'), JSON.stringify({ compilerOptions: options, files: ['consumer.ts'] }))
  const compiler = join(root, 'node_modules/typescript/bin/tsc')
  const { stdout } = await run(process.execPath, [compiler, '-p', '.'], { cwd: consumer }).catch((error) => error)
  expect(stdout).toBe('')
})

test('it generates with the addon that NIBBLET_BINARY names', async () => {
  const output = await runModule(
    `import { loadModel } from 'nibblet'
    const model = await loadModel(${JSON.stringify(join(root, 'models/tiny'))})
    const reply = await model.chat('What is 291 + 647?')
    console.log(reply.text)
    await model.dispose()`,
    { NIBBLET_BINARY: binary },
  )
  expect(output).toBe('938\n')
})

test('its command runs', async () => {
  const command = join(consumer, 'node_modules/.bin/nibblet')
  const { stdout } = await run(command, ['--version'], { cwd: consumer })
  expect(stdout.trim()).toBe(manifest.version)
})
