import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { StopStrings } from '../../lib/generate/stop-strings.js'

/** The definition, on the whole text: the first end at which any stop string is complete; there, the longest. */
function naive(stops: readonly string[], text: string): { text: string; stop?: string } {
  for (let end = 1; end <= text.length; end++) {
    const ending = stops.filter((stop) => text.slice(0, end).endsWith(stop))
    const longest = ending.sort((a, b) => b.length - a.length)[0]
    if (longest !== undefined) return { text: text.slice(0, end - longest.length), stop: longest }
  }
  return { text }
}

function stream(stops: readonly string[], pieces: readonly string[]): { text: string; stop?: string } {
  const matcher = new StopStrings(stops)
  let text = ''
  for (const piece of pieces) {
    const result = matcher.push(piece)
    text += result.text
    if (result.stop !== undefined) return { text, stop: result.stop }
  }
  return { text: text + matcher.flush() }
}

describe('StopStrings', () => {
  test('holds back only what may still become a stop string', () => {
    const matcher = new StopStrings(['END'])
    expect(matcher.push('the E')).toEqual({ text: 'the ' })
    expect(matcher.push('N')).toEqual({ text: '' })
    expect(matcher.push('ERGY')).toEqual({ text: 'ENERGY' })
    expect(matcher.push(' EN')).toEqual({ text: ' ' })
    expect(matcher.push('D and more')).toEqual({ text: '', stop: 'END' })
  })

  test('gives the held text back at the end', () => {
    const matcher = new StopStrings(['\n\n'])
    expect(matcher.push('a\n')).toEqual({ text: 'a' })
    expect(matcher.flush()).toBe('\n')
    expect(matcher.flush()).toBe('')
  })

  test.each([
    [['ab', 'b'], 'xab', { text: 'x', stop: 'ab' }],
    [['abc', 'b'], 'xabc', { text: 'xa', stop: 'b' }],
    [['aab'], 'aaab', { text: 'a', stop: 'aab' }],
    [['later', 'x'], 'x later', { text: '', stop: 'x' }],
    [['.'], '3.14', { text: '3', stop: '.' }],
    [[], 'nothing stops', { text: 'nothing stops' }],
  ])('%o in %o', (stops, text, expected) => {
    expect(stream(stops, [text])).toEqual(expected)
    expect(stream(stops, [...text])).toEqual(expected)
  })

  test('equals the definition however the text is cut', () => {
    const letters = fc.constantFrom('a', 'b', 'c')
    const word = (minLength: number, maxLength: number) =>
      fc.array(letters, { minLength, maxLength }).map((characters) => characters.join(''))
    fc.assert(
      fc.property(
        fc.array(word(1, 4), { minLength: 1, maxLength: 4 }),
        fc.array(word(0, 5), { maxLength: 12 }),
        (stops, pieces) => {
          expect(stream(stops, pieces)).toEqual(naive(stops, pieces.join('')))
        },
      ),
      { numRuns: 3000 },
    )
  })

  test('never releases text late: what is held is a beginning of a stop string', () => {
    fc.assert(
      fc.property(fc.array(fc.constantFrom('x', 'ab', 'aba', 'ba')), (pieces) => {
        const stops = ['abab!', 'bab?']
        const matcher = new StopStrings(stops)
        let pushed = 0
        let released = 0
        const all = pieces.join('')
        for (const piece of pieces) {
          pushed += piece.length
          released += matcher.push(piece).text.length
          const held = all.slice(released, pushed)
          expect(held === '' || stops.some((stop) => stop.startsWith(held))).toBe(true)
        }
      }),
    )
  })
})
