import { RequestError } from '../errors.js'

// The layout of native/runtime/step_input.h, in 32-bit words.
const magic = 0x53544550
const headerWords = 8
const sequenceWords = 6
const rowWords = 2
const samplingWords = 18

const decodeFlag = 1
const countFlag = 2
const startFlag = 1
const thinkingFlag = 2

// No vocabulary and no reply is that large.
const largest = 2 ** 31 - 1

/** Consecutive tokens of one sequence in a step. */
export interface StepSequence {
  slot: number
  /** Position of the first token. */
  position: number
  /** The tokens; `undefined` is one token, the slot's last sampled one. */
  ids: Uint32Array | undefined
  pages: readonly number[]
  /** The reply has penalties: token counts are kept. */
  counts?: boolean
  /** Indices into the sequence's tokens whose logits are wanted. */
  rows: readonly number[]
  /** How to sample each row; absent in steps that do not sample. */
  sampling?: RowSampling
}

/** Sampling of one row: `struct Sampling` of kernels/step.h. */
export interface RowSampling {
  temperature: number
  topP: number
  minP: number
  repetitionPenalty: number
  presencePenalty: number
  frequencyPenalty: number
  topK: number
  seed: number
  /** Alternatives to report; -1: no log probabilities. */
  logprobs: number
  stopIds: readonly number[]
  thinkEndIds: readonly number[]
  forcedIds: readonly number[]
  /** Set on the first sampled token of a reply. */
  start?: { thinking: boolean; budget: number } | undefined
}

/** Packs steps into one reused array. What `pack` returns is valid until the next call; `launch` copies it. */
export class StepInput {
  #words = new Int32Array(1024)
  #floats = new Float32Array(this.#words.buffer)

  /** @throws RequestError INVALID_OPTION when only some of the sequences sample */
  pack(sequences: readonly StepSequence[]): Int32Array {
    let tokens = 0
    let rows = 0
    let pages = 0
    let samplers = 0
    for (const sequence of sequences) {
      tokens += sequence.ids?.length ?? 1
      rows += sequence.rows.length
      pages = Math.max(pages, sequence.pages.length)
      samplers += sequence.sampling && sequence.rows.length > 0 ? sequence.rows.length : 0
    }
    const samples = samplers > 0
    if (samples && samplers !== rows) {
      throw new RequestError('INVALID_OPTION', 'either every logits row of a step samples or none does')
    }
    const lists = new ListTable()
    const body =
      headerWords +
      2 * tokens +
      sequences.length * (sequenceWords + pages) +
      rows * (rowWords + (samples ? samplingWords : 0))
    this.#reserve(body)
    const words = this.#words
    let ids = headerWords
    let owners = ids + tokens
    let at = owners + tokens
    let pageAt = at + sequences.length * sequenceWords
    let rowAt = pageAt + sequences.length * pages
    let samplingAt = rowAt + rows * rowWords
    let first = 0
    for (const [index, sequence] of sequences.entries()) {
      const count = sequence.ids?.length ?? 1
      if (sequence.ids) words.set(sequence.ids, ids)
      else words[ids] = -1
      words.fill(index, owners, owners + count)
      ids += count
      owners += count
      words[at] = sequence.slot
      words[at + 1] = first
      words[at + 2] = count
      words[at + 3] = sequence.position
      words[at + 4] = (sequence.ids ? 0 : decodeFlag) | (sequence.counts ? countFlag : 0)
      words[at + 5] = 0
      at += sequenceWords
      words.fill(0, pageAt, pageAt + pages)
      words.set(sequence.pages, pageAt)
      pageAt += pages
      for (const row of sequence.rows) {
        words[rowAt] = first + row
        words[rowAt + 1] = index
        rowAt += rowWords
        if (samples && sequence.sampling) {
          this.#packSampling(samplingAt, sequence.sampling, lists)
          samplingAt += samplingWords
        }
      }
      first += count
    }
    this.#reserve(body + lists.ids.length)
    this.#words.set(lists.ids, body)
    this.#words.set([magic, tokens, sequences.length, rows, pages, samples ? 1 : 0, lists.ids.length, 0])
    return this.#words.subarray(0, body + lists.ids.length)
  }

  #packSampling(at: number, sampling: RowSampling, lists: ListTable): void {
    const words = this.#words
    const floats = this.#floats
    floats[at] = sampling.temperature
    floats[at + 1] = sampling.topP
    floats[at + 2] = sampling.minP
    floats[at + 3] = sampling.repetitionPenalty
    floats[at + 4] = sampling.presencePenalty
    floats[at + 5] = sampling.frequencyPenalty
    words[at + 6] = Math.min(sampling.topK, largest)
    words[at + 7] = sampling.seed % 2 ** 32
    words[at + 8] = Math.floor(sampling.seed / 2 ** 32)
    words[at + 9] = sampling.logprobs
    words[at + 10] = Math.min(sampling.start?.budget ?? -1, largest)
    words[at + 11] = lists.add(sampling.stopIds)
    words[at + 12] = sampling.stopIds.length
    words[at + 13] = lists.add(sampling.thinkEndIds)
    words[at + 14] = sampling.thinkEndIds.length
    words[at + 15] = lists.add(sampling.forcedIds)
    words[at + 16] = sampling.forcedIds.length
    words[at + 17] = sampling.start ? startFlag | (sampling.start.thinking ? thinkingFlag : 0) : 0
  }

  #reserve(words: number): void {
    if (words <= this.#words.length) return
    const grown = new Int32Array(2 * words)
    grown.set(this.#words)
    this.#words = grown
    this.#floats = new Float32Array(grown.buffer)
  }
}

/** Lists of ids, each stored once a step. */
class ListTable {
  readonly ids: number[] = []
  readonly #starts = new Map<readonly number[], number>()

  add(list: readonly number[]): number {
    let start = this.#starts.get(list)
    if (start === undefined) {
      start = this.ids.length
      this.#starts.set(list, start)
      this.ids.push(...list)
    }
    return start
  }
}
