import type { Model } from '../../lib/index.js'
import { disagreements, type Golden, relativeError } from './goldens.js'

/** How a model did on one prompt of a goldens file. */
export interface PromptResult {
  /** Relative L2 error of the stored logits of the last positions. */
  error: number
  /** Positions whose choice differs from the reference's. */
  different: number
  /** The same, where the margin exceeds 0.01. */
  wrong: number
  /** Tokens of the continuation that differ where the margin exceeds 0.01. */
  greedyWrong: number
}

const keptPositions = 8

/**
 * Scores a prompt followed by the reference's continuation, in one pass: by induction, a continuation whose every token is
 * the model's choice after the tokens before it is the model's greedy continuation. Where the file has no margins, they are
 * the model's own: how far it prefers its choice to the reference's.
 */
export async function scoreGolden(model: Model, golden: Golden): Promise<PromptResult> {
  const { ids, argmax, logits, top, greedy } = golden
  const all = Uint32Array.from([...ids, ...greedy.subarray(0, -1)])
  const scores = await model.score(all)
  const kept = Math.min(ids.length, keptPositions)
  const last = scores.logits.slice(ids.length - kept, ids.length)
  const error =
    top.length > 0
      ? relativeError(
          top.map((row, at) => Array.from(row.ids, (id) => last[at]?.[id] ?? Number.NaN)),
          top.map((row) => row.logits),
        )
      : relativeError(last, logits)
  const margin = (first: number, expected: Int32Array, stored: Float32Array | undefined) =>
    stored ??
    Float32Array.from(expected, (id, at) => {
      const row = scores.logits[first + at] as Float32Array
      return (row[scores.argmax[first + at] as number] as number) - (row[id] as number)
    })
  const chosen = scores.argmax.subarray(0, ids.length)
  const continued = scores.argmax.subarray(ids.length - 1)
  return {
    error,
    different: disagreements(chosen, argmax, new Float32Array(argmax.length).fill(1)).length,
    wrong: disagreements(chosen, argmax, margin(0, argmax, golden.margin)).length,
    greedyWrong: disagreements(continued, greedy, margin(ids.length - 1, greedy, golden.greedyMargin)).length,
  }
}

/** Scores all prompts one after the other. */
export async function scoreGoldens(model: Model, goldens: readonly Golden[]): Promise<PromptResult[]> {
  const results: PromptResult[] = []
  for (const golden of goldens) results.push(await scoreGolden(model, golden))
  return results
}

/** One line for the log of a test: the errors, largest first, and how many choices differ. */
export function summary(results: readonly PromptResult[]): string {
  const errors = results.map(({ error }) => error).sort((a, b) => b - a)
  const different = results.reduce((sum, result) => sum + result.different, 0)
  return `relative L2 ${errors.map((error) => error.toExponential(1)).join(' ')}; ${different} choices differ`
}
