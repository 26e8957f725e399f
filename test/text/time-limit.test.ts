import { describe, expect, test } from 'vitest'
import { TimeLimitError, withTimeLimit } from '../../lib/text/time-limit.js'

describe('withTimeLimit', () => {
  test('returns what the code returns and throws what it throws', () => {
    const value = { a: 1 }
    expect(withTimeLimit(1_000, () => value)).toBe(value)
    const error = new RangeError('mine')
    expect(() =>
      withTimeLimit(1_000, () => {
        throw error
      }),
    ).toThrow(error)
    // Something thrown that is no error at all.
    expect(() =>
      withTimeLimit(1_000, () => {
        throw null
      }),
    ).toThrow()
  })

  test.each([
    [
      'a loop',
      () => {
        for (;;);
      },
    ],
    ['a regular expression', () => /(a+)+$/.test(`${'a'.repeat(50)}!`)],
    [
      'a loop that catches',
      () => {
        for (;;) {
          try {
            JSON.parse('{')
          } catch {}
        }
      },
    ],
  ])('breaks off %s', (_, body) => {
    expect(() => withTimeLimit(50, body)).toThrow(TimeLimitError)
    expect(withTimeLimit(1_000, () => 'as before')).toBe('as before')
  })

  test('one inside another: the inner limit ends the inner code only', () => {
    const outer = withTimeLimit(5_000, () => {
      expect(() =>
        withTimeLimit(50, () => {
          for (;;);
        }),
      ).toThrow(TimeLimitError)
      return withTimeLimit(5_000, () => 'still here')
    })
    expect(outer).toBe('still here')
  })

  test('time spent waiting does not count', () => {
    let runs = 0
    const sleep = () => {
      runs++
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 250)
      // The first run is broken off here, where the next ones come by.
      for (let i = 0; i < 1e6; i++);
      return 'rested'
    }
    expect(withTimeLimit(100, sleep)).toBe('rested')
    expect(runs).toBeGreaterThan(1)
  })
})
