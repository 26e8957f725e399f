import { describe, expect, test } from 'vitest'
import { NibbletError } from '../../lib/errors.js'
import { resolveChatOptions, resolveGenerateOptions } from '../../lib/generate/options.js'

const defaults = {
  generation: { stopIds: [2, 11], sample: true, temperature: 0.6, topP: 0.95 },
  vocabularySize: 4096,
}

function failure(run: () => unknown): NibbletError {
  try {
    run()
  } catch (error) {
    if (NibbletError.is(error)) return error
    throw error
  }
  throw new Error('nothing was thrown')
}

describe('defaults', () => {
  test('come from the checkpoint, the rest is off', () => {
    const { sampling, ...rest } = resolveChatOptions({}, defaults)
    expect(sampling).toMatchObject({
      temperature: 0.6,
      topP: 0.95,
      topK: 0,
      minP: 0,
      repetitionPenalty: 1,
      presencePenalty: 0,
      frequencyPenalty: 0,
    })
    expect(rest).toMatchObject({ thinking: true, thinkingBudget: undefined, maxTokens: undefined, maxToolRounds: 8 })
    expect(rest.stopIds).toEqual([2, 11])
  })

  test('a random seed that differs from call to call', () => {
    const seeds = new Set(Array.from({ length: 20 }, () => resolveChatOptions({}, defaults).sampling.seed))
    expect(seeds.size).toBe(20)
    for (const seed of seeds) expect(Number.isSafeInteger(seed) && seed >= 0).toBe(true)
  })

  test('greedy when the checkpoint does not sample, unless a sampling option asks', () => {
    const greedy = { ...defaults, generation: { stopIds: [2], sample: false } }
    expect(resolveChatOptions({}, greedy).sampling.temperature).toBe(0)
    for (const option of [{ topK: 4 }, { topP: 0.5 }, { minP: 0.1 }, { seed: 3 }]) {
      expect(resolveChatOptions(option, greedy).sampling.temperature).toBe(1)
    }
  })

  test('stop ids are added to those of the checkpoint', () => {
    expect(resolveChatOptions({ stopIds: [5, 11] }, defaults).stopIds).toEqual([2, 11, 5])
  })

  test('undefined is the same as left out', () => {
    const resolved = resolveChatOptions({ temperature: undefined, thinking: undefined, tools: undefined }, defaults)
    expect(resolved.sampling.temperature).toBe(0.6)
    expect(resolved.thinking).toBe(true)
  })
})

describe('thinking', () => {
  test.each([
    [true, true, undefined],
    [false, false, undefined],
    [{ maxTokens: 0 }, true, 0],
    [{ maxTokens: 64 }, true, 64],
  ])('%o', (thinking, on, budget) => {
    expect(resolveChatOptions({ thinking }, defaults)).toMatchObject({ thinking: on, thinkingBudget: budget })
  })
})

describe('bad options', () => {
  const bad: [Record<string, unknown>, string, RegExp][] = [
    [
      { temperature: 'hot' },
      'temperature',
      /^Expected a number of at least 0 for `temperature` but got "hot" of type string\.$/,
    ],
    [{ temperature: -1 }, 'temperature', /but got -1 of type number/],
    [{ temperature: Number.NaN }, 'temperature', /but got NaN of type number/],
    [{ temperature: null }, 'temperature', /but got null of type null/],
    [{ topK: 1.5 }, 'topK', /an integer of at least 0 for `topK`/],
    [{ topP: 0 }, 'topP', /a number above 0 and at most 1 for `topP`/],
    [{ topP: 1.01 }, 'topP', /topP/],
    [{ minP: 2 }, 'minP', /a number of at least 0 and at most 1/],
    [{ repetitionPenalty: 0 }, 'repetitionPenalty', /above 0/],
    [{ presencePenalty: '1' }, 'presencePenalty', /a number for/],
    [{ frequencyPenalty: Number.POSITIVE_INFINITY }, 'frequencyPenalty', /Infinity/],
    [{ seed: -1 }, 'seed', /integer/],
    [{ seed: 2 ** 53 }, 'seed', /integer/],
    [{ maxTokens: 0 }, 'maxTokens', /an integer of at least 1/],
    [{ stop: '' }, 'stop', /not empty/],
    [{ stop: ['a', 3] }, 'stop[1]', /a string/],
    [{ stop: 3 }, 'stop', /a string or an array/],
    [{ stopIds: 11 }, 'stopIds', /array of token ids/],
    [{ stopIds: [4096] }, 'stopIds[0]', /at most 4095/],
    [{ logprobs: 21 }, 'logprobs', /at most 20/],
    [{ logprobs: true }, 'logprobs', /of type boolean/],
    [{ signal: {} }, 'signal', /AbortSignal/],
    [{ thinking: 'yes' }, 'thinking', /a boolean or/],
    [{ thinking: null }, 'thinking', /null/],
    [{ thinking: { maxTokens: -1 } }, 'thinking.maxTokens', /at least 0/],
    [{ thinking: { budget: 3 } }, 'budget', /no option `budget`/],
    [{ tools: {} }, 'tools', /array of tools/],
    [{ tools: [3] }, 'tools[0]', /tool\(\)/],
    [{ maxToolRounds: -1 }, 'maxToolRounds', /at least 0/],
    [{ temprature: 1 }, 'temprature', /Did you mean `temperature`\?/],
    [{ max_tokens: 1 }, 'max_tokens', /Did you mean `maxTokens`\?/],
    [{ top_k: 1 }, 'top_k', /Did you mean `topK`\?/],
    [{ banana: 1 }, 'banana', /The options are temperature, topK/],
  ]
  test.each(bad)('%o', (options, option, message) => {
    const error = failure(() => resolveChatOptions(options, defaults))
    expect(error).toMatchObject({ name: 'RequestError', code: 'INVALID_OPTION', details: { option } })
    expect(error.message).toMatch(message)
  })

  test.each([[null], [3], ['x'], [[]]])('options that are no object: %o', (options) => {
    expect(failure(() => resolveChatOptions(options as never, defaults)).details).toEqual({ option: 'options' })
  })

  test('complete() says that it has no chat options', () => {
    const error = failure(() => resolveGenerateOptions({ thinking: false } as never, defaults))
    expect(error.message).toMatch(/complete\(\) continues raw text and has no `thinking`/)
  })
})
