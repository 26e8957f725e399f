import { spawn } from 'node:child_process'

/** Speeds of another program on the same machine, in the same run: the fastest of `runs`, as nibblet's own are. */
export interface PeerResult {
  program: string
  model: string
  /** Of its tensors. */
  modelBytes: number
  runs: number
  prefill: { tokens: number; tokensPerSecond: number }
  decode: { tokens: number; tokensPerSecond: number }
}

/** What is used of a row that llama-bench prints. */
interface Row {
  n_prompt: number
  n_gen: number
  build_commit: string
  model_type: string
  model_size: number
  samples_ts: number[]
}

/** As many as nibblet's own of a large model: a prompt of 512 tokens takes it a minute on two cores, and it warms up with one more. */
const runs = 3

/**
 * Runs `llama-bench` of a llama.cpp build that the caller made, on a GGUF file that the caller has, through its command line
 * alone: `-m FILE -p N -n N -t N -r N -o json`. It warms up by itself before each of the two tests.
 * @throws Error when it fails, or prints something else than the two tests
 */
export async function runPeer(
  program: string,
  options: { model: string; prompt: number; generate: number; threads: number },
): Promise<PeerResult> {
  const { model, prompt, generate, threads } = options
  const args = ['-m', model, '-p', prompt, '-n', generate, '-t', threads, '-r', runs, '-o', 'json'].map(String)
  const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'inherit'] })
  let text = ''
  child.stdout.setEncoding('utf8').on('data', (piece: string) => {
    text += piece
  })
  const [code, signal] = await new Promise<[number | null, string | null]>((resolve, reject) => {
    child.on('error', reject)
    child.on('close', (...ended) => resolve(ended))
  })
  if (code !== 0) throw new Error(`${program} ended with ${signal ?? `code ${code}`}`)
  const rows = parse(program, text)
  const test = (promptTokens: number, generated: number): Row => {
    const row = rows.find(({ n_prompt, n_gen }) => n_prompt === promptTokens && n_gen === generated)
    if (row === undefined || row.samples_ts.length === 0) {
      throw new Error(`${program} told nothing of ${promptTokens} tokens of prompt and ${generated} generated`)
    }
    return row
  }
  const [prefill, decode] = [test(prompt, 0), test(0, generate)]
  return {
    program: `llama.cpp ${prefill.build_commit}`,
    model: prefill.model_type,
    modelBytes: prefill.model_size,
    runs,
    prefill: { tokens: prompt, tokensPerSecond: Math.max(...prefill.samples_ts) },
    decode: { tokens: generate, tokensPerSecond: Math.max(...decode.samples_ts) },
  }
}

function parse(program: string, text: string): Row[] {
  try {
    return JSON.parse(text) as Row[]
  } catch {
    throw new Error(`${program} printed no JSON but ${JSON.stringify(text.slice(0, 200))}`)
  }
}
