import { describe, expect, test } from 'vitest'
import { type Flags, parseArguments, UsageError } from '../../lib/cli/args.js'

const flags: Flags = {
  'max-tokens': { value: 'N', help: '' },
  temperature: { value: 'X', help: '' },
  'no-thinking': { help: '' },
  stop: { value: 'TEXT', help: '', multiple: true },
  'kv-cache': { value: 'FORMAT', help: '' },
  help: { short: 'h', help: '' },
}

describe('parseArguments', () => {
  test('flags, values and positionals, in any order', () => {
    const args = parseArguments(
      ['a', '--max-tokens', '5', '--no-thinking', 'b', '--stop=x', '--stop', 'y', '-h'],
      flags,
    )
    expect(args.positionals).toEqual(['a', 'b'])
    expect(args.integer('max-tokens')).toBe(5)
    expect(args.on('no-thinking')).toBe(true)
    expect(args.on('help')).toBe(true)
    expect(args.texts('stop')).toEqual(['x', 'y'])
    expect(args.has('temperature')).toBe(false)
    expect(args.number('temperature')).toBeUndefined()
  })

  test('what follows -- is text', () => {
    expect(parseArguments(['--', '--max-tokens', '-3'], flags).positionals).toEqual(['--max-tokens', '-3'])
  })

  test.each([
    [['--max-token', '5'], /^Unknown flag --max-token\. Did you mean --max-tokens\?$/],
    [['--temprature=1'], /Did you mean --temperature\?/],
    [['--kvcache', 'fp8'], /Did you mean --kv-cache\?/],
    [['--nothinking'], /Did you mean --no-thinking\?/],
    [['--banana'], /Unknown flag --banana\. Text that begins with '-' goes behind '--'/],
    [['-x'], /Unknown flag -x\./],
    [['-3 + 5'], /Unknown flag -3\./],
    [['--max-tokens'], /^--max-tokens needs a value: --max-tokens N\.$/],
    [['--max-tokens', '--no-thinking'], /--max-tokens needs a value \(N\)/],
    [['--temperature', '-1'], /written --temperature=-1/],
    [['--no-thinking=yes'], /^--no-thinking takes no value\.$/],
  ])('%o', (argv, message) => {
    expect(() => parseArguments(argv, flags)).toThrow(UsageError)
    expect(() => parseArguments(argv, flags)).toThrow(message)
  })

  test.each([
    ['1', 1],
    ['-0.5', -0.5],
    ['.5', 0.5],
    ['1e-3', 1e-3],
    ['', undefined],
    ['0x10', undefined],
    ['1,5', undefined],
    ['hot', undefined],
    ['Infinity', undefined],
    ['NaN', undefined],
  ])('number %o', (text, value) => {
    const args = parseArguments([`--temperature=${text}`], flags)
    if (value !== undefined) expect(args.number('temperature')).toBe(value)
    else expect(() => args.number('temperature')).toThrow(`Expected a number for --temperature but got '${text}'.`)
  })

  test('bounds', () => {
    const args = parseArguments(['--temperature=2', '--max-tokens=0'], flags)
    expect(() => args.number('temperature', { above: 0, max: 1 })).toThrow(/a number above 0 and at most 1 for/)
    expect(() => args.integer('max-tokens', { min: 1 })).toThrow(/a whole number of at least 1 for/)
    expect(() => parseArguments(['--max-tokens=1.5'], flags).integer('max-tokens')).toThrow(/a whole number/)
    expect(() => parseArguments(['--max-tokens=9007199254740993'], flags).integer('max-tokens')).toThrow(UsageError)
    expect(() => parseArguments(['--kv-cache=f16'], flags).choice('kv-cache', ['fp8', 'bf16'])).toThrow(
      "Expected fp8 or bf16 for --kv-cache but got 'f16'.",
    )
  })
})
