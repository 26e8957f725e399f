import { spawn } from 'node:child_process'

/** Speeds of another program on the same machine, in the same run. */
export interface PeerResult {
  program: string
  model: string
  prefill: { tokens: number; tokensPerSecond: number }
  decode: { tokens: number; tokensPerSecond: number }
}

interface Row {
  n_prompt: number
  n_gen: number
  avg_ts: number
  build_commit?: string
  model_type?: string
}

/**
 * Runs `llama-bench` of a llama.cpp build that the caller made, on a GGUF file that the caller has, through its command line
 * alone: `-m FILE -p N -n N -t N -o json`.
 */
export async function runPeer(
  program: string,
  options: { model: string; prompt: number; generate: number; threads: number },
): Promise<PeerResult> {
  const { model, prompt, generate, threads } = options
  const args = ['-m', model, '-p', prompt, '-n', generate, '-t', threads, '-o', 'json'].map(String)
  const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'inherit'] })
  let text = ''
  child.stdout.setEncoding('utf8').on('data', (piece: string) => {
    text += piece
  })
  const code = await new Promise((resolve, reject) => {
    child.on('error', reject)
    child.on('close', resolve)
  })
  if (code !== 0) throw new Error(`${program} ended with code ${code}`)
  const rows = JSON.parse(text) as Row[]
  const rate = (wanted: (row: Row) => boolean) => rows.find(wanted)?.avg_ts ?? Number.NaN
  const [first] = rows
  return {
    program: `llama.cpp ${first?.build_commit ?? ''}`.trim(),
    model: first?.model_type ?? model,
    prefill: { tokens: prompt, tokensPerSecond: rate((row) => row.n_prompt > 0 && row.n_gen === 0) },
    decode: { tokens: generate, tokensPerSecond: rate((row) => row.n_gen > 0) },
  }
}
