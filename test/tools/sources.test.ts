import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, test } from 'vitest'
import { repository } from './fixture.js'

const list: Record<string, string[]> = JSON.parse(readFileSync(join(repository, 'sources.json'), 'utf8'))
/** The folder of each section, and the files below it that belong there. */
const sections: Readonly<Record<string, [folder: string, belongs: (path: string) => boolean]>> = {
  kernels: ['kernels', (path) => path.endsWith('.cc')],
  runtime: ['native/runtime', (path) => path.endsWith('.cc') && !path.startsWith('native/runtime/cuda/')],
  'cuda-kernels': ['kernels', (path) => path.endsWith('.cu')],
  'cuda-runtime': ['native/runtime', (path) => path.endsWith('.cc') && path.startsWith('native/runtime/cuda/')],
  addon: ['native/addon', (path) => path.endsWith('.cc')],
  tests: ['test', (path) => path.endsWith('.cc') && !/^test\/(cuda|emulator)\//.test(path)],
  'cuda-tests': ['test/cuda', (path) => path.endsWith('.cc')],
  emulator: ['test/emulator', (path) => path.endsWith('.cc')],
}

describe('sources.json', () => {
  test.each(Object.entries(sections))('%s lists every source file of its own, once', (section, [folder, belongs]) => {
    const files = readdirSync(join(repository, folder), { recursive: true }).map((path) => `${folder}/${path}`)
    expect(list[section]?.toSorted()).toEqual(files.filter(belongs).sort())
  })

  test('has no other section', () => {
    expect(Object.keys(list).sort()).toEqual(Object.keys(sections).sort())
  })

  test('what includes the CUDA runtime is built with CUDA alone', () => {
    for (const [section, files] of Object.entries(list)) {
      for (const path of files) {
        const includes = /#include <cuda/.test(readFileSync(join(repository, path), 'utf8'))
        expect(includes && !section.startsWith('cuda-') && section !== 'tests' && section !== 'emulator', path).toBe(
          false,
        )
      }
    }
  })

  test('no CUDA source stands where nothing builds it', () => {
    const elsewhere = ['native', 'test'].flatMap((folder) =>
      readdirSync(join(repository, folder), { recursive: true }).filter((path) => String(path).endsWith('.cu')),
    )
    expect(elsewhere).toEqual([])
  })
})

describe('the two builds', () => {
  const cmake = readFileSync(join(repository, 'CMakeLists.txt'), 'utf8')
  const gyp = readFileSync(join(repository, 'binding.gyp'), 'utf8')

  test.each([
    '-O3',
    '-Wall',
    '-Wextra',
    '-ffp-contract=off',
    '-fno-math-errno',
    'NAPI_VERSION=9',
    'NAPI_CPP_EXCEPTIONS',
    'NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS',
    'NIBBLET_VERSION=',
  ])('both say %s', (flag) => {
    expect(cmake).toContain(flag)
    expect(gyp).toContain(flag)
  })

  test('the layers include only what lies below them', () => {
    const allowed: Readonly<Record<string, RegExp>> = {
      kernels: /^kernels\//,
      'native/runtime': /^(kernels|native\/runtime)\//,
      'native/addon': /^(kernels|native\/runtime|native\/addon)\//,
    }
    for (const [folder, pattern] of Object.entries(allowed)) {
      for (const path of readdirSync(join(repository, folder), { recursive: true }) as string[]) {
        if (!/\.(h|cc|inc|cu|cuh)$/.test(path)) continue
        const text = readFileSync(join(repository, folder, path), 'utf8')
        const own = [...text.matchAll(/^#include "([^"]+)"/gm)]
          .map((match) => match[1] ?? '')
          // The one way from kernels to the emulator that stands in for nvcc in tests.
          .filter((name) => !(folder === 'kernels' && path === 'cuda/device.h' && name === 'test/emulator/device.h'))
        expect(
          own.filter((name) => !pattern.test(name) || !existsSync(join(repository, name))),
          `${folder}/${path}`,
        ).toEqual([])
        const node = /#include <(node_api|napi|js_native_api|uv|v8|node)\b/.test(text)
        expect(node && folder !== 'native/addon', `${folder}/${path} includes a Node header`).toBe(false)
      }
    }
  })
})
