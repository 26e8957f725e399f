import { RequestError } from '../errors.js'

/** One task of a held-out file. */
export interface Task {
  /** What is asked, such as `add`; results are counted by it. */
  kind: string
  /** Whether the prompt opens a think block. */
  thinking: boolean
  /** The rendered prompt, verbatim. */
  prompt: string
  answer: string
}

/**
 * Reads tasks from JSON Lines: `kind`, `thinking`, `prompt` and `answer` of each line, whatever else it holds. Blank lines
 * are skipped. Throws `INVALID_OPTION` naming the line and the field; `file` is for that message.
 */
export function parseTasks(text: string, file: string, limit = Number.POSITIVE_INFINITY): Task[] {
  const tasks: Task[] = []
  for (const [i, line] of text.split('\n').entries()) {
    if (tasks.length >= limit) break
    if (line.trim() !== '') tasks.push(parseTask(line, file, i + 1))
  }
  if (tasks.length === 0)
    throw new RequestError('INVALID_OPTION', `${file} holds no tasks.`, { details: { option: 'tasks' } })
  return tasks
}

function parseTask(text: string, file: string, line: number): Task {
  const bad = (problem: string, cause?: unknown) =>
    new RequestError('INVALID_OPTION', `${file}, line ${line}: ${problem}`, {
      cause,
      details: { option: 'tasks', line },
    })
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch (error) {
    throw bad(`this is no JSON (${error instanceof Error ? error.message : error}). Each line holds one task.`, error)
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) throw bad('expected an object.')
  const fields = value as Record<string, unknown>
  const types = { kind: 'string', thinking: 'boolean', prompt: 'string', answer: 'string' } as const
  for (const [name, type] of Object.entries(types)) {
    const got = fields[name]
    if (typeof got !== type) throw bad(`expected a ${type} for "${name}" but got ${JSON.stringify(got) ?? 'nothing'}.`)
  }
  const { kind, thinking, prompt, answer } = fields as unknown as Task
  if (prompt === '') throw bad('"prompt" is empty.')
  return { kind, thinking, prompt, answer }
}

/**
 * The answer in a raw completion: what follows the reasoning, without white space around it. Reasoning ends at the last
 * `</think>`, or without one where a tool call begins; when it never ends there is no answer. A tool call stays as the
 * model wrote it.
 */
export function answerOf(completion: string, thinking: boolean): string | undefined {
  const close = completion.lastIndexOf('</think>')
  if (close >= 0) return completion.slice(close + '</think>'.length).trim()
  if (!thinking) return completion.trim()
  const call = completion.indexOf('<tool_call>')
  return call < 0 ? undefined : completion.slice(call).trim()
}

/** Tasks and the share of them that was answered exactly, 0 to 1; 0 when there are none. */
export interface Score {
  n: number
  exact: number
}

/** The result of an evaluation; a kind has a part only for the modes that occur in it. */
export interface Evaluation {
  thinking: Score
  direct: Score
  kinds: Record<string, Score & { thinking?: Score; direct?: Score }>
}

/** Counts results; `done` and `exact` are the totals so far. */
export class Tally {
  readonly #results: { kind: string; thinking: boolean; exact: boolean }[] = []

  add(task: Task, exact: boolean): void {
    this.#results.push({ kind: task.kind, thinking: task.thinking, exact })
  }

  get done(): number {
    return this.#results.length
  }

  get exact(): number {
    return this.#results.filter(({ exact }) => exact).length
  }

  get evaluation(): Evaluation {
    const score = (results: { exact: boolean }[]): Score => ({
      n: results.length,
      exact: results.length === 0 ? 0 : results.filter(({ exact }) => exact).length / results.length,
    })
    const names = [...new Set(this.#results.map(({ kind }) => kind))].sort()
    const kinds = names.map((name) => {
      const all = this.#results.filter(({ kind }) => kind === name)
      const [thinking, direct] = [all.filter((r) => r.thinking), all.filter((r) => !r.thinking)]
      const parts = {
        ...(thinking.length === 0 ? {} : { thinking: score(thinking) }),
        ...(direct.length === 0 ? {} : { direct: score(direct) }),
      }
      return [name, { ...score(all), ...parts }] as const
    })
    return {
      thinking: score(this.#results.filter((r) => r.thinking)),
      direct: score(this.#results.filter((r) => !r.thinking)),
      kinds: Object.fromEntries(kinds),
    }
  }
}
