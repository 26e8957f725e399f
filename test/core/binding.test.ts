import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { locateBinding } from '../../lib/core/binding.js'
import { BindingError } from '../../lib/errors.js'

const repository = resolve(import.meta.dirname, '../..')
const { version } = JSON.parse(readFileSync(join(repository, 'package.json'), 'utf8'))

/** A package folder without an addon; a `.cjs` file can stand for one, since both are loaded by `require`. */
let root: string

beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), 'nibblet-binding-'))
  writeFileSync(join(root, 'package.json'), readFileSync(join(repository, 'package.json')))
})

afterEach(() => {
  rmSync(root, { recursive: true })
})

function write(path: string, text: string): string {
  const file = join(root, path)
  mkdirSync(resolve(file, '..'), { recursive: true })
  writeFileSync(file, text)
  return file
}

function errorOf(work: () => unknown): BindingError {
  try {
    work()
  } catch (error) {
    expect(error).toBeInstanceOf(BindingError)
    return error as BindingError
  }
  throw new Error('nothing was thrown')
}

describe('locateBinding', () => {
  test('takes the explicit path before all else', () => {
    const binary = write('mine.cjs', `module.exports = { version: '${version}' }`)
    write('build/Release/nibblet.node', 'not an addon')
    expect(locateBinding({ root, binary })).toEqual({ binding: { version }, path: binary, source: 'environment' })
  })

  test('an explicit path that does not exist is an error, even where a build exists', () => {
    write('build/Release/nibblet.node', 'not an addon')
    const error = errorOf(() => locateBinding({ root, binary: join(root, 'absent.node') }))
    expect(error.code).toBe('NO_BINARY')
    expect(error.message).toContain(`NIBBLET_BINARY names ${join(root, 'absent.node')}, which does not exist`)
  })

  test('another version is an ABI mismatch that names both', () => {
    const binary = write('old.cjs', `module.exports = { version: '0.0.1' }`)
    const error = errorOf(() => locateBinding({ root, binary }))
    expect(error.code).toBe('ABI_MISMATCH')
    expect(error.details).toEqual({ expected: version, actual: '0.0.1' })
    expect(error.message).toContain(`built from nibblet 0.0.1, but this is nibblet ${version}`)
  })

  test('a build that cannot be loaded is an error at once, with the loader’s reason', () => {
    const path = write('build/Release/nibblet.node', 'not an addon')
    const error = errorOf(() => locateBinding({ root, binary: '' }))
    expect(error.code).toBe('NO_BINARY')
    expect(error.message).toContain(`${path} is there but cannot be loaded: `)
    expect(error.cause).toBeInstanceOf(Error)
    expect(error.details.attempts).toHaveLength(1)
  })

  test('build/Debug is not looked at', () => {
    write('build/Debug/nibblet.node', 'not an addon')
    expect(errorOf(() => locateBinding({ root, binary: '' })).message).toContain('No native addon was found')
  })

  test('nothing anywhere lists every attempt and the command to run, in a checkout and in an installed package', () => {
    const installed = errorOf(() => locateBinding({ root, binary: '' }))
    expect(installed.code).toBe('NO_BINARY')
    expect(installed.details.attempts).toEqual([
      { path: join(root, 'build/Release/nibblet.node'), reason: 'no such file' },
      { path: `@nibblet/${process.platform}-${process.arch}`, reason: expect.any(String) },
    ])
    expect(installed.message).toMatch(
      /Build it: `npm install --no-save cmake-js@[\d.]+ .* && node .*tools\/setup\.mjs`\.$/,
    )
    write('package-lock.json', '{}')
    expect(errorOf(() => locateBinding({ root, binary: '' })).message).toMatch(/Run `npm run setup` in .*\.$/)
  })
})
