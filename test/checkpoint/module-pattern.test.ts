import fc from 'fast-check'
import { describe, expect, it, test } from 'vitest'
import { targetMatcher, wildcardMatcher } from '../../lib/checkpoint/module-pattern.js'
import { NameExpression, StateBudget } from '../../lib/checkpoint/name-expression.js'
import { parseRegex, parseWildcard } from '../../lib/checkpoint/name-pattern.js'
import { expectError } from '../helpers/expect-error.js'

const file = 'model/config.json'
const regex = (source: string) => new NameExpression(parseRegex(source), new StateBudget())
const wildcard = (source: string) => new NameExpression(parseWildcard(source), new StateBudget())

describe('regular expressions over module names', () => {
  // What Python's re.match says.
  const matching: [pattern: string, name: string][] = [
    ['', 'anything'],
    ['backbone', 'backbone.layers.0'],
    ['.*lm_head', 'lm_head'],
    ['.*\\.(q|k|v|o)_proj$', 'backbone.layers.3.mixer.k_proj'],
    ['backbone\\.layers\\.(?:[0-9]|1[0-9])\\.mixer', 'backbone.layers.17.mixer.in_proj'],
    ['^(?!.*(router|gate)).*proj$', 'backbone.layers.3.mixer.k_proj'],
    ['(?=.*mixer)backbone', 'backbone.layers.0.mixer'],
    ['(?P<block>backbone|model)\\.norm_f\\Z', 'backbone.norm_f'],
    ['.*\\bmixer\\b', 'backbone.layers.0.mixer.D'],
    ['.*experts\\.\\d{1,3}\\.(up|down)_proj', 'backbone.layers.1.mixer.experts.127.down_proj'],
    ['\\w+?\\.\\D+', 'lm.head'],
    ['[^.]+\\.[a-l]+', 'model.layers'],
    ['[]a]+$', 'a]a'],
    ['[\\w-]+\\x2elayers', 'a-b.layers'],
    ['a{x}', 'a{x}'],
    ['a{,2}b', 'aab'],
    ['(?:)*a', 'a'],
    ['(a*)*b', 'aab'],
  ]
  test.each(matching)('%s matches %s', (pattern, name) => expect(regex(pattern).matches(name)).toBe(true))

  const others: [pattern: string, name: string][] = [
    ['lm_head', 'model.lm_head'],
    ['layers', 'backbone.layers.0'],
    ['.*gate$', 'backbone.layers.1.mixer.gate_proj'],
    ['^(?!.*(router|gate)).*$', 'backbone.layers.1.mixer.gate'],
    ['.*\\bmix\\b', 'backbone.layers.0.mixer.D'],
    ['a{2,3}$', 'aaaa'],
    ['[^a-c]', 'b'],
    ['(a|b){2}$', 'ab.'],
  ]
  test.each(others)('%s does not match %s', (pattern, name) => expect(regex(pattern).matches(name)).toBe(false))

  it('agrees with the engine of JavaScript on whatever both take', () => {
    const atom = fc.constantFrom('a', 'b', '.', '\\.', '[ab]', '[^a]', '\\w', '\\d', '\\b', '^', '$')
    const { pattern } = fc.letrec<{ pattern: string }>((tie) => ({
      pattern: fc.oneof(
        { maxDepth: 4 },
        atom,
        fc.tuple(tie('pattern'), tie('pattern')).map(([a, b]) => a + b),
        fc.tuple(tie('pattern'), tie('pattern')).map(([a, b]) => `(?:${a}|${b})`),
        fc
          .tuple(tie('pattern'), fc.constantFrom('*', '+', '?', '{2}', '{1,2}', '{0,}', '*?'))
          .map(([a, count]) => `(${a})${count}`),
        tie('pattern').map((a) => (a.includes('(?=') || a.includes('(?!') ? a : `(?!${a})`)),
        tie('pattern').map((a) => (a.includes('(?=') || a.includes('(?!') ? a : `(?=${a})`)),
      ),
    }))
    const name = fc.string({ unit: fc.constantFrom('a', 'b', '.', '1'), maxLength: 8 })
    fc.assert(
      fc.property(pattern, name, (source, text) => {
        expect(regex(source).matches(text)).toBe(new RegExp(`^(?:${source})`, 's').test(text))
      }),
      { numRuns: 2_000, seed: 20261122 },
    )
  })

  const refused: [pattern: string, code: string, reason: RegExp][] = [
    ['(', 'BAD_FORMAT', /ends too early|not closed/],
    ['a)', 'BAD_FORMAT', /closes nothing/],
    ['*', 'BAD_FORMAT', /repeats nothing/],
    ['a**', 'BAD_FORMAT', /repeats a repetition/],
    ['[a', 'BAD_FORMAT', /ends too early/],
    ['[b-a]', 'BAD_FORMAT', /no such range/],
    ['a{3,2}', 'BAD_FORMAT', /more at least/],
    ['\\', 'BAD_FORMAT', /ends too early/],
    ['\\q', 'BAD_FORMAT', /means nothing/],
    ['\\x4', 'BAD_FORMAT', /no character/],
    ['(a)\\1', 'UNSUPPORTED_MODEL', /refers back/],
    ['(?<=a)b', 'UNSUPPORTED_MODEL', /groups are plain/],
    ['(?i)a', 'UNSUPPORTED_MODEL', /groups are plain/],
    ['a++', 'UNSUPPORTED_MODEL', /possessive/],
    ['(?=a(?!b))', 'UNSUPPORTED_MODEL', /while looking ahead/],
    ['(?=a)*', 'UNSUPPORTED_MODEL', /no length/],
    ['a{1001}', 'BAD_FORMAT', /too often/],
    ['((a{1000}){1000}){1000}', 'BAD_FORMAT', /too large/],
    ['((){1000}){1000}', 'BAD_FORMAT', /too large/],
    ['a'.repeat(1_001), 'BAD_FORMAT', /longer than 1000/],
  ]
  test.each(refused)('%s is refused with %s', async (pattern, code, reason) => {
    const error = await expectError(() => targetMatcher([`re:${pattern}`], file), code as never, file)
    expect(error.message).toMatch(reason)
    expect(error.message.length).toBeLessThan(400)
  })

  it('a list of patterns is bounded as a whole', async () => {
    await expectError(() => targetMatcher(Array(200).fill(`re:${'.*'.repeat(50)}`), file), 'BAD_FORMAT', 'too large')
  })
})

describe('wildcards', () => {
  const cases: [pattern: string, name: string, matches: boolean][] = [
    ['*.q_proj', 'backbone.layers.3.mixer.q_proj', true],
    ['*.q_proj', 'backbone.layers.3.mixer.q_proj.weight', false],
    ['lm_hea?', 'lm_head', true],
    ['*.layers.[0-3].*', 'backbone.layers.2.mixer', true],
    ['*.layers.[!0-3].*', 'backbone.layers.2.mixer', false],
    ['*.layers.[', 'backbone.layers.[', true],
    ['a.c*', 'abc', false],
    ['[]]', ']', true],
    ['[a-]', '-', true],
  ]
  test.each(cases)('%s against %s', (pattern, name, matches) => expect(wildcard(pattern).matches(name)).toBe(matches))
})

describe('patterns made to take for ever', () => {
  // Backtracking engines need from minutes to longer than the sun has for these.
  const name = `backbone.layers.0.${'a'.repeat(60)}!`
  const regexes = [
    '.*(a+)+$',
    '(.*)*x(.*)*y(.*)*z$',
    '(?:.|a|b|[a-z])*q',
    `(?:${'.?'.repeat(200)})${'.'.repeat(200)}`,
    '(?=(.*.*.*.*.*)*q).*',
    '(?:(?:.{0,9}){0,9}){0,9}q',
    '(?:a|a)(?:a|a)'.repeat(60),
    '^(?!.*(.*)*q)(.*a){20}$',
  ]
  test.each(regexes)('re:%s', (pattern) => {
    const start = performance.now()
    const matches = targetMatcher([`re:${pattern}`], file)
    for (let round = 0; round < 10; round++) matches(name)
    expect((performance.now() - start) / 10).toBeLessThan(200)
  })

  it('*a*a*a…', () => {
    const start = performance.now()
    expect(wildcardMatcher(['*a'.repeat(100)], file)(name)).toBe(false)
    expect(performance.now() - start).toBeLessThan(200)
  })
})
