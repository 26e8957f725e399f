import {
  existsSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import ts from 'typescript'
import { afterAll, afterEach, describe, expect, test } from 'vitest'
import { Fixture, repository, until } from './fixture.js'

const fixtures: Fixture[] = []

function makeFixture(options?: { checkout?: boolean }): Fixture {
  const fixture = new Fixture(options)
  fixtures.push(fixture)
  return fixture
}

afterEach(() => {
  for (const fixture of fixtures.splice(0)) fixture.dispose()
})

describe('Node version', () => {
  // Runs that are accepted go on to look for the sources, which are not there.
  const shared = new Fixture()
  rmSync(join(shared.root, 'sources.json'))
  afterAll(() => shared.dispose())

  const pretend = (version: string) => [
    '--import',
    `data:text/javascript,Object.defineProperty(process,"versions",{value:{...process.versions,node:"${version}"}})`,
  ]

  test.each(['12.22.12', '18.20.4', '20.18.3', '21.7.3', '22.11.0'])(
    '%s is refused in one sentence',
    async (version) => {
      const { code, stdout, stderr } = await shared.setup({}, pretend(version))
      expect(code).toBe(1)
      expect(stdout).toBe('')
      expect(stderr).toMatch(/^nibblet needs Node 20\.19 .*\n$/)
      expect(stderr).toContain(version)
    },
  )

  test.each(['20.19.0', '22.12.0', '23.0.0', '24.1.0'])('%s is accepted', async (version) => {
    const { stderr } = await shared.setup({}, pretend(version))
    expect(stderr).toContain('sources.json is missing')
  })

  test('the check is that of package.json', () => {
    expect(JSON.parse(readFileSync(join(repository, 'package.json'), 'utf8')).engines.node).toBe(
      '^20.19.0 || >=22.12.0',
    )
  })

  test('the entry has only syntax that Node 12 parses and imports nothing by itself', () => {
    const text = readFileSync(join(repository, 'tools/setup.mjs'), 'utf8')
    const lower = (target: ts.ScriptTarget) =>
      ts.transpileModule(text, { compilerOptions: { target, module: ts.ModuleKind.ESNext } }).outputText
    expect(lower(ts.ScriptTarget.ES2018)).toBe(lower(ts.ScriptTarget.ESNext))
    expect(text).not.toMatch(/^\s*import\s+[^(]/m)
  })

  test('set-up imports nothing but Node and itself', () => {
    const folder = join(repository, 'tools/setup')
    const imported = readdirSync(folder).flatMap((name) =>
      [...readFileSync(join(folder, name), 'utf8').matchAll(/(?:from|import\() ?'([^']+)'/g)].map((match) => match[1]),
    )
    expect(imported.length).toBeGreaterThan(20)
    expect(imported.filter((name) => !/^(node:|\.\/)/.test(name ?? ''))).toEqual([])
  })
})

describe('packages', () => {
  const lock = (packages: object) => JSON.stringify({ lockfileVersion: 3, packages })
  const one = { version: '1.0.0', integrity: 'sha512-a', dev: true }
  const other = { version: '2.0.0', integrity: 'sha512-b', optional: true }
  const wanted = { '': { name: 'x' }, 'node_modules/one': one, 'node_modules/other': other }

  test.each([
    ['all there', { 'node_modules/one': one, 'node_modules/other': other }, true],
    ['an optional one absent', { 'node_modules/one': one }, true],
    ['another one absent', { 'node_modules/other': other }, false],
    ['another version', { 'node_modules/one': { ...one, version: '1.0.1' } }, false],
    ['other contents', { 'node_modules/one': { ...one, integrity: 'sha512-c' } }, false],
    ['one too many', { 'node_modules/one': one, 'node_modules/more': one }, false],
    ['never installed', undefined, false],
  ])('%s', async (_name, installed, fresh) => {
    const { arePackagesFresh } = await import(join(repository, 'tools/setup/stale.mjs'))
    const fixture = makeFixture()
    rmSync(join(fixture.root, 'node_modules'), { recursive: true })
    fixture.write('package-lock.json', lock(wanted))
    if (installed !== undefined) fixture.write('node_modules/.package-lock.json', lock(installed))
    expect(arePackagesFresh(fixture.root)).toBe(fresh)
  })

  test('stale ones are installed by the npm that runs the script', async () => {
    const fixture = makeFixture({ checkout: true })
    renameSync(join(fixture.root, 'node_modules'), join(fixture.root, 'installed'))
    const npm = fixture.npm(
      `
      const fs = require('node:fs')
      fs.writeFileSync('npm-arguments', process.argv.slice(2).join(' '))
      console.log('from npm')
      fs.renameSync('installed', 'node_modules')`,
      'fake',
    )
    const { code, stdout, stderr } = await fixture.setup({ npm_execpath: npm })
    expect(stderr).toMatch(
      /^\[1\/2\] packages\nfrom npm\n\[2\/2\] native code\n[\s\S]*\[2\/2\] TypeScript\nset-up took [\d.]+ s\n$/,
    )
    expect({ code, stdout }).toEqual({ code: 0, stdout: '' })
    expect(fixture.read('npm-arguments')).toBe('ci --include=dev --no-audit --no-fund')
    expect(fixture.read('dist/index.js')).toContain('938')
    expect(await fixture.loadAddon()).toBe('2')

    const again = await fixture.setup()
    expect(again).toMatchObject({ code: 0, stdout: '', stderr: '' })

    fixture.write('lib/renamed.ts', 'export const more = 1\n')
    fixture.write('lib/index.ts', 'export const answer: string = 938\n')
    const wrong = await fixture.setup()
    expect(wrong.code).toBe(1)
    expect(wrong.stderr).toContain('TS2322')
    fixture.write('lib/index.ts', 'export const answer: number = 939\n')
    expect(await fixture.setup()).toMatchObject({ code: 0, stderr: expect.not.stringContaining('native') })
    expect(existsSync(join(fixture.root, 'dist/renamed.js'))).toBe(true)
    rmSync(join(fixture.root, 'lib/renamed.ts'))
    expect(await fixture.setup()).toMatchObject({ code: 0 })
    expect(fixture.read('dist/index.js')).toContain('939')
    expect(existsSync(join(fixture.root, 'dist/renamed.js'))).toBe(false)
    expect(existsSync(join(fixture.root, 'dist/renamed.d.ts'))).toBe(false)
  })

  test('a linked node_modules is left alone', async () => {
    const fixture = makeFixture({ checkout: true })
    rmSync(join(fixture.root, 'node_modules'), { recursive: true })
    fixture.write('elsewhere/kept/index.js', '')
    symlinkSync(join(fixture.root, 'elsewhere'), join(fixture.root, 'node_modules'))
    const { code, stderr } = await fixture.setup()
    expect(code).toBe(1)
    expect(stderr).toContain('node_modules is a link, and npm ci would empty the folder behind it')
  })

  test('a failing npm is named', async () => {
    const fixture = makeFixture({ checkout: true })
    rmSync(join(fixture.root, 'node_modules'), { recursive: true })
    const npm = fixture.npm('console.error("no such version"); process.exit(3)', 'fake')
    const { code, stderr } = await fixture.setup({ npm_execpath: npm })
    expect(code).toBe(1)
    expect(stderr).toContain('no such version\nnpm ci failed with exit code 3')
  })
})

describe('native code', () => {
  test('is built when stale, and only then', async () => {
    const fixture = makeFixture()
    const first = await fixture.setup()
    expect(first).toMatchObject({ code: 0, stdout: '' })
    expect(first.stderr).toMatch(/^\[2\/2\] native code\n(\[2\/2\] native code \d+\/\d+\n)*set-up took [\d.]+ s\n$/)
    expect(await fixture.loadAddon()).toBe('2')
    expect(readdirSync(join(fixture.root, 'build/Release')).sort()).toEqual(['nibblet.node', 'nibblet.stamp.json'])

    // The aim is 50 ms beyond Node's own start, on an idle machine. Other tests run beside this one: the best of ten counts.
    let best = Number.POSITIVE_INFINITY
    for (let tries = 0; tries < 10 && (tries < 3 || best >= 400); tries++) {
      const run = await fixture.setup()
      expect(run).toMatchObject({ code: 0, stdout: '', stderr: '' })
      best = Math.min(best, run.milliseconds)
    }
    expect(best).toBeLessThan(400)

    const header = join(fixture.root, 'kernels/one/one.h')
    utimesSync(header, new Date(), new Date())
    expect(await fixture.setup()).toMatchObject({ code: 0, stderr: '' })

    writeFileSync(join(fixture.root, 'kernels/one/one.cc'), 'int one() { return 4; }\n')
    expect(await fixture.setup()).toMatchObject({ code: 0, stderr: expect.stringContaining('native code') })
    expect(await fixture.loadAddon()).toBe('8')

    expect(await fixture.setup({ NIBBLET_WERROR: '1' })).toMatchObject({
      stderr: expect.stringContaining('native code'),
    })
    rmSync(join(fixture.root, 'build/Release/nibblet.node'))
    expect(await fixture.setup({ NIBBLET_WERROR: '1' })).toMatchObject({
      stderr: expect.stringContaining('native code'),
    })
    expect(await fixture.loadAddon()).toBe('8')
  })

  test('builds through node-gyp where there is no CMake', async () => {
    const fixture = makeFixture()
    const PATH = fixture.pathWithout('cmake', 'ninja')
    const first = await fixture.setup({ PATH })
    expect(first.stderr).toContain('[2/2] native code')
    expect(first).toMatchObject({ code: 0, stdout: '' })
    expect(existsSync(join(fixture.root, 'build/cmake.log'))).toBe(false)
    expect(fixture.read('build/node-gyp.log')).toContain('CXX(target)')
    expect(await fixture.loadAddon()).toBe('2')
    expect(await fixture.setup({ PATH })).toMatchObject({ code: 0, stderr: '' })
    // A CMake that appears later is no reason to build again, asking for it is.
    expect(await fixture.setup()).toMatchObject({ code: 0, stderr: '' })
    expect(await fixture.setup({ NIBBLET_BUILDER: 'cmake' })).toMatchObject({
      code: 0,
      stderr: expect.stringContaining('native code'),
    })
    expect(await fixture.loadAddon()).toBe('2')
  })

  test('a missing compiler gets one sentence', async () => {
    const fixture = makeFixture()
    for (const missing of [
      ['c++', 'g++', 'clang++'],
      ['c++', 'g++', 'clang++', 'cmake'],
    ]) {
      const { code, stderr } = await fixture.setup({ PATH: fixture.pathWithout(...missing) })
      expect(code).toBe(1)
      expect(stderr).toMatch(
        /^\[2\/2\] native code\nNo C\+\+ compiler was found: .*g\+\+.*, then run the same command again\.\n$/,
      )
    }
    // What Clang says of itself.
    const clang = await fixture.setup({ CXX: 'g++ -D__clang__' })
    expect(clang.code).toBe(1)
    expect(clang.stderr).toMatch(/\nThe compiler \S*g\+\+ is Clang, .* Name a g\+\+ in CXX, or .*\.\n$/)
    const named = await fixture.setup({ CXX: 'no-such-compiler' })
    expect(named.stderr).toContain('under the name in CXX, no-such-compiler')
  })

  test('a compilation error names the log and leaves the old addon', async () => {
    const fixture = makeFixture()
    await fixture.setup()
    const before = statSync(join(fixture.root, 'build/Release/nibblet.node'))
    fixture.write('kernels/one/one.cc', 'int one() { return nonsense; }\n')
    const { code, stdout, stderr } = await fixture.setup()
    expect({ code, stdout }).toEqual({ code: 1, stdout: '' })
    expect(stderr).toContain('nonsense')
    expect(stderr).toContain(`The compiler's whole output is in ${join(fixture.root, 'build/cmake.log')}.`)
    expect(fixture.read('build/cmake.log')).toContain('nonsense')
    expect(statSync(join(fixture.root, 'build/Release/nibblet.node')).mtimeMs).toBe(before.mtimeMs)
    expect(existsSync(join(fixture.root, 'build/.setup.lock'))).toBe(false)
  })

  test('a listed file that does not exist is named', async () => {
    const fixture = makeFixture()
    rmSync(join(fixture.root, 'native/runtime/two.cc'))
    const { code, stderr } = await fixture.setup()
    expect(code).toBe(1)
    expect(stderr).toContain('sources.json lists files that do not exist: native/runtime/two.cc.')
  })
})

describe('several runs', () => {
  test('take turns: the second finds everything done', async () => {
    const fixture = makeFixture()
    const { cxx, gate } = fixture.slowCompiler()
    const first = fixture.start({ CXX: cxx })
    await until(() => existsSync(join(fixture.root, 'build/cmake.log')))
    const second = fixture.start({ CXX: cxx })
    await new Promise((resolve) => setTimeout(resolve, 500))
    rmSync(gate)
    expect(await first.result).toMatchObject({ code: 0, stderr: expect.stringContaining('native code') })
    const waited = await second.result
    expect(waited).toMatchObject({
      code: 0,
      stdout: '',
      stderr: `waiting for the set-up that process ${first.child.pid} is running\n`,
    })
    expect(await fixture.loadAddon()).toBe('2')
  })

  test('Ctrl-C ends with 130, leaves nothing half, and the next run goes on', async () => {
    const fixture = makeFixture()
    const { cxx, gate } = fixture.slowCompiler()
    const { child, result } = fixture.start({ CXX: cxx })
    const log = join(fixture.root, 'build/cmake.log')
    const compiled = () => existsSync(log) && /one\.cc\.o/.test(readFileSync(log, 'utf8'))
    await until(compiled)
    child.kill('SIGINT')
    expect(await result).toMatchObject({
      code: 130,
      stdout: '',
      stderr: expect.stringContaining('the next run goes on'),
    })
    expect(existsSync(join(fixture.root, 'build/Release/nibblet.node'))).toBe(false)
    expect(existsSync(join(fixture.root, 'build/.setup.lock'))).toBe(false)

    rmSync(gate)
    expect(await fixture.setup({ CXX: cxx })).toMatchObject({ code: 0 })
    expect(compiled()).toBe(false)
    expect(await fixture.loadAddon()).toBe('2')
  })

  test('a killed run is succeeded, once the compiler it left has ended', async () => {
    const fixture = makeFixture()
    const { cxx, gate } = fixture.slowCompiler()
    const first = fixture.start({ CXX: cxx })
    const log = join(fixture.root, 'build/cmake.log')
    await until(() => existsSync(log) && /one\.cc\.o/.test(readFileSync(log, 'utf8')))
    first.child.kill('SIGKILL')
    await first.result
    const second = fixture.start({ CXX: cxx })
    await new Promise((resolve) => setTimeout(resolve, 600))
    expect(existsSync(join(fixture.root, 'build/Release/nibblet.node'))).toBe(false)
    rmSync(gate)
    const { code, stderr } = await second.result
    expect(stderr).toMatch(/^waiting for [^\n]*\n\[2\/2\] native code\n/)
    expect(code).toBe(0)
    expect(await fixture.loadAddon()).toBe('2')
  })

  test('the lock of a dead process is taken over by one of many', async () => {
    const fixture = makeFixture()
    fixture.write('build/.setup.lock', JSON.stringify({ pid: 999_999_999, token: 'x' }))
    const results = await Promise.all([fixture.setup(), fixture.setup(), fixture.setup()])
    for (const { code } of results) expect(code).toBe(0)
    expect(results.filter(({ stderr }) => stderr.includes('native code')).length).toBe(1)
  })
})
