import { describe, expect, test } from 'vitest'
import { type RowSampling, StepInput } from '../../lib/engine/step-input.js'
import { expectError } from '../helpers/expect-error.js'

const neutral: RowSampling = {
  temperature: 0,
  topP: 1,
  minP: 0,
  repetitionPenalty: 1,
  presencePenalty: 0,
  frequencyPenalty: 0,
  topK: 0,
  seed: 0,
  logprobs: -1,
  stopIds: [],
  thinkEndIds: [],
  forcedIds: [],
}

function floatsOf(words: Int32Array): Float32Array {
  return new Float32Array(words.buffer, words.byteOffset, words.length)
}

/** The layout of native/runtime/step_input.h, word by word. */
describe('StepInput', () => {
  test('a decode row and a prompt that samples', () => {
    const stopIds = [2, 11]
    const words = new StepInput().pack([
      { slot: 3, position: 70, ids: undefined, pages: [5, 6], rows: [0], sampling: { ...neutral, stopIds, topK: 40 } },
      {
        slot: 1,
        position: 0,
        ids: Uint32Array.of(7, 8, 9),
        pages: [4],
        counts: true,
        rows: [2],
        sampling: {
          ...neutral,
          temperature: 0.5,
          topP: 0.75,
          minP: 0.25,
          repetitionPenalty: 1.5,
          presencePenalty: -1,
          frequencyPenalty: 2,
          seed: 2 ** 53 - 1,
          logprobs: 20,
          stopIds,
          thinkEndIds: [13],
          forcedIds: [12, 13],
          start: { thinking: true, budget: 9 },
        },
      },
    ])
    expect([...words.subarray(0, 8)]).toEqual([0x53544550, 4, 2, 2, 2, 1, 5, 0])
    expect([...words.subarray(8, 16)]).toEqual([-1, 7, 8, 9, 0, 1, 1, 1])
    expect([...words.subarray(16, 28)]).toEqual([3, 0, 1, 70, 1, 0, 1, 1, 3, 0, 2, 0])
    expect([...words.subarray(28, 32)]).toEqual([5, 6, 4, 0])
    expect([...words.subarray(32, 36)]).toEqual([0, 0, 3, 1])
    const first = words.subarray(36, 54)
    expect([...floatsOf(first).subarray(0, 6)]).toEqual([0, 1, 0, 1, 0, 0])
    expect([...first.subarray(6)]).toEqual([40, 0, 0, -1, -1, 0, 2, 2, 0, 2, 0, 0])
    const second = words.subarray(54, 72)
    expect([...floatsOf(second).subarray(0, 6)]).toEqual([0.5, 0.75, 0.25, 1.5, -1, 2])
    expect([...second.subarray(6)]).toEqual([0, -1, 2 ** 21 - 1, 20, 9, 0, 2, 2, 1, 3, 2, 3])
    expect([...words.subarray(72)]).toEqual([2, 11, 13, 12, 13])
  })

  test('numbers beyond 32 bits stay large instead of wrapping', () => {
    const start = { thinking: true, budget: 2 ** 40 }
    const words = new StepInput().pack([
      {
        slot: 0,
        position: 0,
        ids: Uint32Array.of(1),
        pages: [0],
        rows: [0],
        sampling: { ...neutral, topK: 2 ** 32 + 1, start },
      },
    ])
    const sampling = words.subarray(words.length - 18)
    expect(sampling[6]).toBe(2 ** 31 - 1)
    expect(sampling[10]).toBe(2 ** 31 - 1)
  })

  test('is reused: a small step after a large one carries nothing over', () => {
    const input = new StepInput()
    const small = () => input.pack([{ slot: 1, position: 0, ids: Uint32Array.of(5), pages: [2], rows: [] }])
    const before = [...small()]
    input.pack(
      Array.from({ length: 40 }, (_, slot) => ({
        slot,
        position: 64,
        ids: Uint32Array.from({ length: 60 }, (_, id) => id),
        pages: [slot, slot + 1],
        rows: [0, 59],
      })),
    )
    expect([...small()]).toEqual(before)
  })

  test('either every row samples or none does', async () => {
    const step = { slot: 0, position: 0, ids: undefined, pages: [0], rows: [0] }
    await expectError(
      () => new StepInput().pack([step, { ...step, slot: 1, sampling: neutral }]),
      'INVALID_OPTION',
      'every logits row',
    )
  })
})
