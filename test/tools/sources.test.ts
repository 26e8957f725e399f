import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, test } from 'vitest'
import { repository } from './fixture.js'

const list: Record<string, string[]> = JSON.parse(readFileSync(join(repository, 'sources.json'), 'utf8'))
const sections: Readonly<Record<string, string>> = {
  kernels: 'kernels',
  runtime: 'native/runtime',
  addon: 'native/addon',
  tests: 'test',
}

describe('sources.json', () => {
  test.each(Object.entries(sections))('%s lists every source file below %s, once', (section, folder) => {
    const files = readdirSync(join(repository, folder), { recursive: true })
      .map((path) => `${folder}/${path}`)
      .filter((path) => path.endsWith('.cc'))
    expect(list[section]?.toSorted()).toEqual(files.sort())
  })

  test('has no other section', () => {
    expect(Object.keys(list).sort()).toEqual(Object.keys(sections).sort())
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
        const own = [...text.matchAll(/^#include "([^"]+)"/gm)].map((match) => match[1] ?? '')
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
