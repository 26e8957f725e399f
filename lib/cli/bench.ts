import type { BenchResult } from '../bench/bench.js'
import type { MoeReport } from '../bench/workload.js'
import type { Arguments, Flags } from './args.js'
import { type Command, type Context, takePositionals } from './command.js'
import { loadOptions, modelFlags } from './flags.js'

const { 'context-length': _, ...machineFlags } = modelFlags as Flags & { 'context-length': Flags[string] }

export const benchCommand: Command = {
  name: 'bench',
  usage: '<model> [--prompt N] [--generate N] [--batch N] [--json]',
  summary: 'Measures load, prefill and decode, beside what the memory can do.',
  details: [
    'Prompts are random token ids, so that no tokenizer is needed; --generate tokens are then sampled at temperature 1.',
    'The roofline is the best of 5 reads of 4 GiB in huge pages with the same threads, before and after the run; bytes per',
    'token are those that are touched. JavaScript is the time that it takes of a step, look-ahead or not.',
  ],
  flags: {
    prompt: { value: 'N', help: 'tokens of a prompt (default 512)' },
    generate: { value: 'N', help: 'tokens to sample, at least 2 (default 64)' },
    context: { value: 'N', help: 'positions that the cache has (default: what prompt and reply need)' },
    batch: { value: 'N', help: 'requests at once (default 1)' },
    json: { help: 'print JSON' },
    ...machineFlags,
  },
  run,
}

async function run(args: Arguments, context: Context): Promise<undefined> {
  const [name = ''] = takePositionals(args, ['model'])
  const prompt = args.integer('prompt', { min: 1 })
  const generate = args.integer('generate', { min: 2 })
  const contextLength = args.integer('context', { min: 3 })
  const batch = args.integer('batch', { min: 1, max: 512 })
  const { runtime, output, progress, signal } = context
  let result: BenchResult
  try {
    result = await runtime.bench(name, {
      ...loadOptions(args),
      ...(prompt === undefined ? {} : { prompt }),
      ...(generate === undefined ? {} : { generate }),
      ...(contextLength === undefined ? {} : { contextLength }),
      ...(batch === undefined ? {} : { batch }),
      signal,
      onProgress: ({ stage, loaded, total }) => progress.update(`loading (${stage})`, loaded, total, { bytes: true }),
    })
  } finally {
    progress.clear()
  }
  await output.write(args.on('json') ? `${JSON.stringify(result, undefined, 2)}\n` : describe(result))
}

function describe(result: BenchResult): string {
  const { decode, prefill, experts, loadAverage, eventLoopDelay: delay } = result
  const late = (milliseconds: number) => `${milliseconds.toFixed(1)} ms`
  const row = (name: string, value: string) => `${name.padEnd(16)}${value}\n`
  const gigabytes = (bytes: number) =>
    bytes < 1e9 ? `${(bytes / 1e6).toFixed(1)} MB` : `${(bytes / 1e9).toFixed(2)} GB`
  const percent = (share: number) => `${(100 * share).toFixed(1)} %`
  const idle = decode.gpuIdleMicroseconds
  const speed = (perSecond: number) => `${perSecond < 100 ? perSecond.toFixed(2) : Math.round(perSecond)} tokens/s`
  const short = result.rooflineBytes < 2 ** 32 ? ' (4 GiB where memory allows)' : ''
  const readBytes = `${(result.rooflineBytes / 2 ** 30).toFixed(2)} GiB${short}`
  const cache =
    result.cacheRooflineGBs === undefined ? '' : `; ${result.cacheRooflineGBs.toFixed(1)} GB/s over a token's bytes`
  const { cacheRooflineShare } = decode
  const cacheShare = cacheRooflineShare === undefined ? '' : `, ${percent(cacheRooflineShare)} of the cache's`
  const { load } = result
  const { firstTokenSeconds } = load
  const stages = `${load.openSeconds.toFixed(2)} open, ${load.weightsSeconds.toFixed(2)} weights, ${load.warmUpSeconds.toFixed(2)} warm-up`
  const firstToken = firstTokenSeconds === undefined ? '' : `, first token ${late(1e3 * firstTokenSeconds)} later`
  const moe = (report: MoeReport) => {
    const { min, mean, max, of } = report.expertsTouched
    return `${percent(report.zeros)} zeros, ${min} to ${max} of ${of} experts a layer (mean ${mean.toFixed(1)}) in ${report.tokens} tokens`
  }
  return [
    row('model', result.model),
    row('device', `${result.device}, ${result.variant}, ${result.threads} threads, batch ${result.batch}`),
    row('roofline', `${result.rooflineGBs.toFixed(1)} GB/s in reads of ${readBytes}${cache}`),
    row('machine', `load average ${loadAverage.before.toFixed(1)} before, ${loadAverage.after.toFixed(1)} after`),
    row('load', `${load.seconds.toFixed(2)} s (${stages}), ${load.GBs.toFixed(1)} GB/s${firstToken}`),
    row('prefill', `${speed(prefill.tokensPerSecond)} over ${prefill.tokens}`),
    row('decode', `${speed(decode.tokensPerSecond)}, best of ${result.runs}`),
    row(
      '  a token',
      `${gigabytes(decode.bytesPerToken)}, ${percent(decode.rooflineShare)} of the roofline${cacheShare}`,
    ),
    row('  JavaScript', `${decode.jsMillisecondsPerStep.toFixed(3)} ms a step, ${percent(decode.jsShare)}`),
    ...(idle ? [row('  GPU idle', `${idle.median.toFixed(1)} µs a step, 5 % above ${idle.p95.toFixed(1)} µs`)] : []),
    ...(experts ? [row('  experts', moe(experts.decode)), row('experts', `${moe(experts.prefill)} of a prompt`)] : []),
    row('memory', `${gigabytes(result.memoryBytes)} on the device`),
    ...(result.peakResidentBytes === null ? [] : [row('  peak', `${gigabytes(result.peakResidentBytes)} resident`)]),
    ...(result.processThreads === null ? [] : [row('threads', `${result.processThreads} in the process`)]),
    row('event loop', `late by ${late(delay.p50)}, ${late(delay.p99)} in the worst 1 %, ${late(delay.max)} at most`),
  ].join('')
}
