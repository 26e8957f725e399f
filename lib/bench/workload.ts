import { setMaxListeners } from 'node:events'
import type { EngineStats } from '../engine/engine.js'
import { BatchEngine } from '../engine/engine.js'
import type { ModelRunner } from '../engine/model-runner.js'
import type { MoeCounts } from '../engine/moe-statistics.js'
import { greedySampling } from '../engine/types.js'

/** What is run: `batch` requests at once, each of `prompt` random ids, sampled at temperature 1 for `generate` tokens. */
export interface Workload {
  batch: number
  prompt: number
  generate: number
  vocabularySize: number
  signal?: AbortSignal | undefined
}

export interface Timing {
  /** Seconds from the start until every request has its first token. */
  prefillSeconds: number
  /** From there to the last token, and the tokens that came in between. */
  decodeSeconds: number
  decodeTokens: number
  /** Of the engine, over the same time. */
  decodeStats: EngineStats
}

/** The same ids every time, spread over the vocabulary. */
function ids(count: number, vocabularySize: number, seed: number): Uint32Array {
  let state = seed + 1
  return Uint32Array.from({ length: count }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return Math.floor((state / 2 ** 32) * vocabularySize)
  })
}

/** Runs the workload once. No stop id ends a request early. The same workload samples the same tokens. */
export async function runWorkload(engine: BatchEngine, workload: Workload): Promise<Timing> {
  const { batch, prompt, generate, vocabularySize, signal } = workload
  // Every request listens.
  if (signal) setMaxListeners(batch + 10, signal)
  const start = performance.now()
  let waiting = batch
  let tokens = 0
  let first = 0
  let tokensBefore = 0
  let before: EngineStats = engine.stats
  let last = 0
  const requests = Array.from({ length: batch }, (_, index) => {
    let received = 0
    return engine.run({
      prompt: ids(prompt, vocabularySize, index),
      sampling: { ...greedySampling, temperature: 1, seed: index },
      maxTokens: generate,
      stopIds: [],
      signal,
      onToken: () => {
        tokens += 1
        received += 1
        last = performance.now()
        if (received === 1) waiting -= 1
        if (received === 1 && waiting === 0) {
          first = last
          tokensBefore = tokens
          before = engine.stats
        }
        return 'continue'
      },
    })
  })
  await Promise.all(requests)
  const after = engine.stats
  return {
    prefillSeconds: (first - start) / 1e3,
    decodeSeconds: (last - first) / 1e3,
    decodeTokens: tokens - tokensBefore,
    decodeStats: { steps: after.steps - before.steps, milliseconds: after.milliseconds - before.milliseconds },
  }
}

/** What the mixture-of-experts layers did, as the bench reports it. */
export interface MoeReport {
  /** Share of the hidden activations that relu² left at zero. */
  zeros: number
  /** Different experts that had tokens in one step, in the layer with the fewest, on average and in the one with the most. */
  expertsTouched: { min: number; mean: number; max: number; of: number }
  /** Tokens of each layer. */
  tokens: number
  /** Bytes of expert weights read, all layers together. */
  weightBytes: number
}

/**
 * Runs a short workload with counters on: one step of prompts, then `generate - 1` decode steps, reported apart. Undefined
 * when the model has no experts.
 */
export async function countExperts(
  runner: ModelRunner,
  workload: Workload,
): Promise<{ prefill: MoeReport; decode: MoeReport; decodeSteps: number } | undefined> {
  const { batch, generate } = workload
  const statistics = runner.count(true)
  if (statistics === undefined) return undefined
  try {
    // One chunk takes the prompts of all, so that no step both decodes and prefills.
    const prompt = Math.max(1, Math.min(workload.prompt, 64, Math.floor(runner.chunkTokens / batch)))
    const engine = new BatchEngine(runner, runner.allocator)
    const counted = async (length: number) => {
      await runWorkload(engine, { ...workload, prompt, generate: length })
      return await statistics.take()
    }
    const prefill = await counted(1)
    const decoded = async (length: number) =>
      (await counted(length)).map((counts, place) => less(counts, prefill[place]))
    const decode = report(await decoded(generate), batch * (generate - 1))
    // Over many steps every expert has its turn.
    const { expertsTouched } = report(await decoded(2), batch)
    return {
      prefill: report(prefill, batch * prompt),
      decode: { ...decode, expertsTouched },
      decodeSteps: generate - 1,
    }
  } finally {
    runner.count(false)
  }
}

function less(counts: MoeCounts, earlier: MoeCounts | undefined): MoeCounts {
  if (earlier === undefined) return counts
  return {
    layer: counts.layer,
    activations: counts.activations - earlier.activations,
    zeros: counts.zeros - earlier.zeros,
    weightBytes: counts.weightBytes - earlier.weightBytes,
    tokens: counts.tokens.map((count, expert) => count - (earlier.tokens[expert] ?? 0)),
  }
}

function report(layers: readonly MoeCounts[], tokens: number): MoeReport {
  const sum = (numbers: number[]) => numbers.reduce((total, value) => total + value, 0)
  const touched = layers.map((layer) => layer.tokens.filter((count) => count > 0).length)
  return {
    zeros: sum(layers.map(({ zeros }) => zeros)) / sum(layers.map(({ activations }) => activations)),
    expertsTouched: {
      min: Math.min(...touched),
      mean: sum(touched) / touched.length,
      max: Math.max(...touched),
      of: layers[0]?.tokens.length ?? 0,
    },
    tokens,
    weightBytes: sum(layers.map(({ weightBytes }) => weightBytes)),
  }
}
