import { spawnSync } from 'node:child_process'
import { chmodSync, existsSync, readFileSync, rmSync, statSync, symlinkSync } from 'node:fs'
import { join } from 'node:path'
import { afterEach, describe, expect, test } from 'vitest'
import { Fixture, type RunResult, repository } from './fixture.js'

const load = (name: string) => import(join(repository, 'tools/setup', name))
const { chooseCuda, cudaCompiler, defaultArchs, parseArchs } = await load('cuda-archs.mjs')
const { choosePackages, cmakePackages, findSystem, isCMakeForCuda, isInstalled, parseNvccRelease, toolkitPackages } =
  await load('cuda-toolchain.mjs')
const { findFaults } = await load('cuda-binary.mjs')

const fixtures: Fixture[] = []

function makeFixture(): Fixture {
  const fixture = new Fixture()
  fixtures.push(fixture)
  return fixture
}

afterEach(() => {
  for (const fixture of fixtures.splice(0)) fixture.dispose()
})

function program(fixture: Fixture, path: string, text: string): string {
  fixture.write(path, `#!/bin/sh\n${text}\n`)
  chmodSync(join(fixture.root, path), 0o755)
  return join(fixture.root, path)
}

const setupCuda = (fixture: Fixture, env: NodeJS.ProcessEnv): Promise<RunResult> =>
  fixture.start(env, [], 'setup-cuda.mjs').result

describe('GPU targets', () => {
  test.each([
    [undefined, defaultArchs],
    ['', defaultArchs],
    ['90a', ['90a']],
    ['120f,80', ['80', '120f']],
    ['90a; 89 90a', ['89', '90a']],
  ])('%j is %j', (text, archs) => {
    expect(parseArchs(text)).toEqual(archs)
  })

  test.each([
    ['sm_90', '"sm_90"'],
    ['90a,75', '"75"'],
    ['90f,native', '"90f", "native"'],
    [' , ', 'no target'],
  ])('%j is refused, naming %s', (text, named) => {
    expect(() => parseArchs(text)).toThrow(`NIBBLET_CUDA_ARCHS holds ${named}: give GPU targets separated by commas`)
  })

  test('those of CMakeLists.txt are the same', () => {
    const text = readFileSync(join(repository, 'tools/setup/cuda.cmake'), 'utf8')
    expect(text).toContain(`set(NIBBLET_CUDA_ARCHS "${defaultArchs.join(',')}" CACHE`)
  })

  const previous = { archs: ['90a'], compiler: cudaCompiler }
  const all = { archs: defaultArchs, compiler: cudaCompiler }
  test.each([
    ['nothing asked, nothing built', {}, undefined, undefined],
    ['nothing asked, built before', {}, previous, previous],
    ['other targets asked, built before', { NIBBLET_CUDA_ARCHS: '80' }, previous, { ...previous, archs: ['80'] }],
    ['targets alone ask for nothing', { NIBBLET_CUDA_ARCHS: '80' }, undefined, undefined],
    ['asked for', { NIBBLET_CUDA: '1' }, undefined, all],
    ['asked for without targets, built before', { NIBBLET_CUDA: '1' }, previous, all],
    ['asked for with targets', { NIBBLET_CUDA: '1', NIBBLET_CUDA_ARCHS: '90a' }, undefined, previous],
    ['declined, built before', { NIBBLET_CUDA: '0' }, previous, undefined],
  ])('%s', (_name, environment, before, chosen) => {
    expect(chooseCuda(environment, before)).toEqual(chosen)
  })

  test.each([
    [{ NIBBLET_CUDA: 'yes' }, 'NIBBLET_CUDA must be 1 (build the GPU code too) or 0 (do not), not "yes".\n'],
    [{ NIBBLET_CUDA: '1', NIBBLET_CUDA_ARCHS: 'hopper' }, 'NIBBLET_CUDA_ARCHS holds "hopper": '],
  ])('set-up refuses %j in one sentence', async (env, message) => {
    const { code, stdout, stderr } = await makeFixture().setup(env)
    expect({ code, stdout }).toEqual({ code: 1, stdout: '' })
    expect(stderr.startsWith(message)).toBe(true)
    expect(stderr.split('\n').length).toBe(2)
  })
})

describe('what the machine has', () => {
  test.each([
    ['Cuda compilation tools, release 13.0, V13.0.88\nBuild cuda_13.0.r13.0/compiler.36424714_0\n', '13.0'],
    ['Cuda compilation tools, release 12.9, V12.9.41\n', '12.9'],
    ['nvcc: command not found', undefined],
  ])('nvcc that says %j is of release %s', (text, release) => {
    expect(parseNvccRelease(text)).toBe(release)
  })

  test.each([
    ['cmake version 3.25.1', false],
    ['cmake version 3.31.6', false],
    ['cmake version 4.0.3', false],
    ['cmake version 4.1.0-rc1', true],
    ['cmake version 5.0.0', true],
    ['', false],
  ])('%j is new enough: %s', (text, enough) => {
    expect(isCMakeForCuda(text)).toBe(enough)
  })

  const fits = { place: 'PATH', nvcc: '/opt/nvcc', release: '13.0' }
  const old = { place: 'CUDA_HOME', nvcc: '/opt/old/nvcc', release: '12.4' }
  test.each([
    ['nothing', [], undefined, { ...toolkitPackages, ...cmakePackages }],
    ['another toolkit', [old], '/usr/bin/cmake', toolkitPackages],
    ['a toolkit behind another one', [old, fits], undefined, cmakePackages],
    ['both', [fits], '/usr/bin/cmake', {}],
  ])('with %s it lacks the rest', (_name, toolkits, cmake, packages) => {
    expect(choosePackages({ toolkits, cmake })).toEqual(packages)
  })

  test('CUDA_HOME and CUDA_PATH come before PATH, and what does not run has no release', () => {
    const fixture = makeFixture()
    const broken = program(fixture, 'home/bin/nvcc', 'exit 1')
    const nvcc = program(fixture, 'bin/nvcc', 'echo release 13.0, V13.0.88')
    const cmake = program(fixture, 'bin/cmake', 'echo cmake version 4.2.0')
    const environment = {
      CUDA_HOME: join(fixture.root, 'home'),
      CUDA_PATH: join(fixture.root, 'nowhere'),
      PATH: join(fixture.root, 'bin'),
    }
    expect(findSystem(environment)).toEqual({
      toolkits: [
        { place: 'CUDA_HOME', nvcc: broken, release: undefined },
        { place: 'CUDA_PATH', nvcc: join(fixture.root, 'nowhere/bin/nvcc'), release: undefined },
        { place: 'PATH', nvcc, release: '13.0' },
      ],
      cmake,
    })
  })
})

describe('setup:cuda', () => {
  // Stands for python3, for the one in the virtual environment that it makes, and for pip.
  const fakePython = (pip: string) => `
    if [ "$2" = venv ]; then
      mkdir -p "$3/bin" "$3/lib/python3.99/site-packages"
      cp "$0" "$3/bin/python"
      exit 0
    fi
    folder=$(dirname "$(dirname "$0")")
    ${pip}`
  const installing = `
    echo "$*" >> "$folder/../pip-arguments"
    kit=$folder/lib/python3.99/site-packages/nvidia/cu13
    mkdir -p "$kit/bin" "$kit/lib"
    for name in "$folder/bin/cmake" "$kit/bin/nvcc"; do echo '#!/bin/sh' > "$name"; chmod +x "$name"; done`

  function prepare(pip: string): { fixture: Fixture; env: NodeJS.ProcessEnv } {
    const fixture = makeFixture()
    const PATH = `${join(fixture.root, 'bin')}:${fixture.pathWithout('nvcc', 'cmake', 'python3')}`
    program(fixture, 'bin/python3', fakePython(pip))
    return { fixture, env: { PATH } }
  }

  test('installs the pinned packages, links them, and does nothing the second time', async () => {
    const { fixture, env } = prepare(installing)
    const first = await setupCuda(fixture, env)
    expect(first).toMatchObject({ code: 0, stdout: '' })
    const pins = Object.entries({ ...toolkitPackages, ...cmakePackages }).map(([name, pin]) => `${name}==${pin}`)
    expect(first.stderr).toContain(`installing into ${join(fixture.root, '.cuda')}: ${pins.join(' ')}\n`)
    expect(first.stderr).toContain(`compiler: ${join(fixture.root, '.cuda/toolkit/bin/nvcc')}\n`)
    expect(first.stderr).toContain(`CMake: ${join(fixture.root, '.cuda/bin/cmake')}\n`)
    const asked = fixture.read('pip-arguments')
    for (const pin of pins) expect(asked).toContain(` ${pin}`)
    expect(asked).toContain('--no-deps')
    expect(statSync(join(fixture.root, '.cuda/toolkit/lib64')).isDirectory()).toBe(true)
    expect(isInstalled(fixture.root, { ...toolkitPackages, ...cmakePackages })).toBe(true)

    const again = await setupCuda(fixture, env)
    expect(again.code).toBe(0)
    expect(again.stderr).not.toContain('installing')
    expect(fixture.read('pip-arguments')).toBe(asked)

    // Other pins, or a program that is gone: begin anew.
    expect(isInstalled(fixture.root, { ...toolkitPackages, cmake: '4.0.0' })).toBe(false)
    rmSync(join(fixture.root, '.cuda/toolkit/bin/nvcc'))
    expect((await setupCuda(fixture, env)).stderr).toContain('installing')
    expect(existsSync(join(fixture.root, '.cuda/toolkit/bin/nvcc'))).toBe(true)
  })

  test('installs nothing where the machine has all of it, and names a toolkit of another release', async () => {
    const { fixture, env } = prepare('exit 9')
    program(fixture, 'bin/nvcc', 'echo release 13.0, V13.0.48')
    program(fixture, 'bin/cmake', 'echo cmake version 4.2.0')
    program(fixture, 'old/bin/nvcc', 'echo release 12.4, V12.4.99')
    const { code, stderr } = await setupCuda(fixture, { ...env, CUDA_HOME: join(fixture.root, 'old') })
    expect(stderr).toContain('CUDA_HOME leads to CUDA 12.4, but nibblet is built with 13.0\n')
    expect(stderr).toContain(`compiler: ${join(fixture.root, 'bin/nvcc')}\n`)
    expect(code).toBe(0)
    expect(existsSync(join(fixture.root, '.cuda'))).toBe(false)
  })

  test('without network it says what pip said, and the next run begins anew', async () => {
    const { fixture, env } = prepare('echo "Could not find a version"; exit 1')
    const { code, stdout, stderr } = await setupCuda(fixture, env)
    expect({ code, stdout }).toEqual({ code: 1, stdout: '' })
    expect(stderr).toContain('is the Python package registry reachable?')
    expect(stderr).toContain('Could not find a version\n')
    program(fixture, 'bin/python3', fakePython(installing))
    expect((await setupCuda(fixture, env)).code).toBe(0)
  })

  test('without Python, or without its venv, it says what to install', async () => {
    const { fixture, env } = prepare('')
    program(fixture, 'bin/python3', 'echo "ensurepip is not available"; exit 1')
    const noVenv = await setupCuda(fixture, env)
    expect(noVenv.code).toBe(1)
    expect(noVenv.stderr).toMatch(
      /could not make a virtual environment .*python3-venv[\s\S]*ensurepip is not available/,
    )
    rmSync(join(fixture.root, 'bin/python3'))
    const noPython = await setupCuda(fixture, env)
    expect(noPython.code).toBe(1)
    expect(noPython.stderr).toMatch(/there is no python3 on PATH: install it .*, then run the same command again\.\n$/)
  })
})

describe('build:cuda', () => {
  test('without a toolchain names the command that installs one', async () => {
    const fixture = makeFixture()
    const PATH = fixture.pathWithout('nvcc')
    const { code, stdout, stderr } = await fixture.setup({ NIBBLET_CUDA: '1', PATH })
    expect({ code, stdout }).toEqual({ code: 1, stdout: '' })
    expect(stderr).toContain('The CUDA 13.0 toolchain is not there: run `npm run setup:cuda`')
    expect(stderr).toContain('NIBBLET_CUDA=0 npm run setup')
    expect(existsSync(join(fixture.root, 'build/Release'))).toBe(false)
  })

  const packages = choosePackages(findSystem())
  const toolchain = isInstalled(repository, packages)
  test.skipIf(!toolchain)(
    `adds GPU code, which later set-ups keep until it is declined${toolchain ? '' : ' (needs `npm run setup:cuda`)'}`,
    { timeout: 180_000 },
    async () => {
      const fixture = makeFixture()
      if (Object.keys(packages).length > 0) symlinkSync(join(repository, '.cuda'), join(fixture.root, '.cuda'))
      fixture.write(
        'kernels/one/gpu.cu',
        '__global__ void add(int* to) { *to += 1; }\nvoid launch_add(int* to) { add<<<1, 1>>>(to); }\n',
      )
      fixture.write(
        'native/runtime/cuda/count.cc',
        '#include <cuda_runtime.h>\nvoid launch_add(int*);\nint count() {\n  int n = 0;\n  if (cudaGetDeviceCount(&n) != cudaSuccess) return 40;\n  launch_add(nullptr);\n  return 40;\n}\n',
      )
      fixture.write(
        'native/runtime/two.cc',
        'int count();\n#ifdef NIBBLET_CUDA\nint two() { return count() + 2; }\n#else\nint two() { return 2; }\n#endif\n',
      )
      const list = JSON.parse(fixture.read('sources.json'))
      list['cuda-kernels'] = ['kernels/one/gpu.cu']
      list['cuda-runtime'] = ['native/runtime/cuda/count.cc']
      list['cuda-tests'] = []
      fixture.write('sources.json', JSON.stringify(list))
      const checkBinary = (env: NodeJS.ProcessEnv = {}) =>
        spawnSync(process.execPath, [join(fixture.root, 'tools/check-cuda-binary.mjs')], {
          encoding: 'utf8',
          env: { ...process.env, NIBBLET_CUDA_ARCHS: '', ...env },
        })

      expect(await fixture.setup()).toMatchObject({ code: 0 })
      expect(await fixture.loadAddon()).toBe('2')
      expect(checkBinary().stderr).toContain('kernels/one/gpu.cu has no GPU code in the binary')

      const built = await fixture.setup({ NIBBLET_CUDA: '1', NIBBLET_CUDA_ARCHS: '90a', NIBBLET_WERROR: '1' })
      expect(built.stderr).toContain('native code')
      expect(built.code).toBe(0)
      expect(await fixture.loadAddon()).toBe('42')
      expect(checkBinary({ NIBBLET_CUDA_ARCHS: '90a' })).toMatchObject({ status: 0, stderr: '' })
      const more = checkBinary()
      expect(more.status).toBe(1)
      expect(more.stderr).toContain('kernels/one/gpu.cu has no machine code for 80, 89, 100f, 120f\n')

      expect(await fixture.setup({ NIBBLET_WERROR: '1' })).toMatchObject({ code: 0, stdout: '', stderr: '' })
      fixture.write('kernels/one/one.cc', 'int one() { return 3; }\n')
      expect(await fixture.setup({ NIBBLET_WERROR: '1' })).toMatchObject({ code: 0 })
      expect(await fixture.loadAddon()).toBe('42')

      expect(await fixture.setup({ NIBBLET_CUDA: '0' })).toMatchObject({ code: 0 })
      expect(await fixture.loadAddon()).toBe('2')
      expect(await fixture.setup()).toMatchObject({ code: 0, stderr: '' })
    },
  )
})

describe('the check of a binary', () => {
  const block = (kind: string, arch: string, file: string) =>
    `\nFatbin ${kind} code:\n================\narch = sm_${arch}\ncode version = [1,8]\nhost = linux\ncompile_size = 64bit\nidentifier = ${file}\n`
  const listing = [
    block('elf', '80', '/elsewhere/kernels/a/x.cu'),
    block('elf', '90a', '/elsewhere/kernels/a/x.cu'),
    block('ptx', '90a', '/elsewhere/kernels/a/x.cu'),
    block('elf', '80', '/elsewhere/kernels/b/x.cu'),
    block('ptx', '80', '/elsewhere/kernels/b/x.cu'),
  ].join('')

  test('finds nothing wrong with what is whole', () => {
    expect(findFaults(listing, ['kernels/a/x.cu'], ['80', '90a'])).toEqual([])
    expect(findFaults(listing, ['kernels/b/x.cu'], ['80'])).toEqual([])
  })

  test('names each file and target that is missing, by its whole path', () => {
    expect(findFaults(listing, ['kernels/a/x.cu', 'kernels/b/x.cu', 'kernels/c/x.cu'], ['80', '90a'])).toEqual([
      'kernels/b/x.cu has no machine code for 90a',
      'kernels/b/x.cu has no PTX for 90a',
      'kernels/b/x.cu has PTX for 80, which is only weight',
      'kernels/c/x.cu has no GPU code in the binary: nothing calls it, or it was not built',
    ])
  })
})
