import { CancelFlag, type Graph } from '../core/graph.js'
import type { ModelRunner } from './model-runner.js'
import { StepInput } from './step-input.js'

export interface Scores {
  /** The most likely next token at every position; ties to the lower id. */
  argmax: Int32Array
  /** Raw logits of the last positions, one array of the vocabulary's size each. */
  logits: Float32Array[]
}

function argmaxOf(logits: Float32Array): number {
  let best = 0
  for (let id = 1; id < logits.length; id++) {
    if ((logits[id] as number) > (logits[best] as number)) best = id
  }
  return best
}

/** A failing step poisons the stream; who comes next gets another. */
async function launch(runner: ModelRunner, step: Int32Array, cancel: CancelFlag): Promise<Uint8Array | null> {
  let graph: Graph | undefined
  try {
    graph = runner.scoreGraph()
    return await graph.launch(step, cancel)
  } catch (error) {
    runner.reset(graph)
    throw error
  }
}

/**
 * Runs a token sequence through the model, without sampling, in chunks; at least one token, already checked against context
 * and vocabulary. One call at a time: the runner has one sequence for it.
 * @throws `signal.reason` when aborted between or inside chunks
 */
export async function score(
  runner: ModelRunner,
  ids: Uint32Array,
  options: {
    /** Positions from the end whose logits are kept. */
    last: number
    /** Tokens in one step, at most `runner.scoreRows`, the default. The result does not depend on it. */
    chunk?: number
    signal?: AbortSignal | undefined
  },
): Promise<Scores> {
  const { last, chunk: step = runner.scoreRows, signal } = options
  const { slot, pages } = runner.scoring
  const input = new StepInput()
  const argmax = new Int32Array(ids.length)
  const logits: Float32Array[] = []
  for (let position = 0; position < ids.length; position += step) {
    const chunk = ids.subarray(position, position + step)
    const rows = Array.from(chunk, (_, index) => index)
    const packed = input.pack([{ slot, position, ids: chunk, pages, rows }])
    const cancel = new CancelFlag()
    const abort = () => cancel.cancel()
    signal?.throwIfAborted()
    signal?.addEventListener('abort', abort, { once: true })
    const bytes = await launch(runner, packed, cancel).finally(() => signal?.removeEventListener('abort', abort))
    signal?.throwIfAborted()
    if (bytes === null) throw new Error('a scoring step was cancelled without an abort')
    const values = new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4)
    const vocabulary = values.length / chunk.length
    for (const row of rows) {
      const rowLogits = values.subarray(row * vocabulary, (row + 1) * vocabulary)
      argmax[position + row] = argmaxOf(rowLogits)
      if (position + row >= ids.length - last) logits.push(rowLogits.slice())
    }
  }
  return { argmax, logits }
}
