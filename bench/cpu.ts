// npm run bench:cpu [-- --model NAME]… [--no-ops] [--threads N] [--prompt N] [--generate N] [--out FILE]
//                      [--peer LLAMA_BENCH --peer-model FILE.gguf]
import { readFile, writeFile } from 'node:fs/promises'
import { cpus, loadavg } from 'node:os'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { type BenchResult, bench } from '../lib/bench/bench.js'
import { measureRoofline } from '../lib/bench/roofline.js'
import { Device } from '../lib/core/device.js'
import { cases, measure, type OpResult } from './ops.js'
import { type PeerResult, runPeer } from './peer.js'
import { type CpuReport, cpuMarks, describeReport, insertReport } from './report.js'

const { values } = parseArgs({
  options: {
    model: { type: 'string', multiple: true, default: ['tiny', 'synthetic:nano-30b'] },
    'no-ops': { type: 'boolean', default: false },
    threads: { type: 'string', default: String(Device.physicalCores()) },
    prompt: { type: 'string' },
    generate: { type: 'string', default: '64' },
    out: { type: 'string' },
    peer: { type: 'string' },
    'peer-model': { type: 'string' },
  },
})

if ((values.peer === undefined) !== (values['peer-model'] === undefined)) {
  throw new Error('--peer and --peer-model go together: a program, and the file that it runs')
}
const peerOptions = values.peer !== undefined && { program: values.peer, model: values['peer-model'] ?? '' }

/** What the largest model needs: its 19.4 GB, caches and temporaries, and something for everyone else. */
const needed = 22e9
const threads = Number(values.threads)
const [prompt, generate] = [Number(values.prompt ?? 512), Number(values.generate)]
/** What its aims are stated for. */
const promptOf = (name: string) => (name === 'tiny' && values.prompt === undefined ? 1024 : prompt)
const device = Device.open('cpu')
const note = (text: string) => process.stderr.write(`${text}\n`)
const before = loadavg()[0] ?? 0
const roofline = await measureRoofline(device, { threads })
note(`roofline ${roofline.gigabytesPerSecond.toFixed(1)} GB/s`)

const ops: OpResult[] = []
if (!values['no-ops']) {
  const stream = device.stream({ threads })
  for (const make of cases) {
    const result = await measure(stream, make, roofline.gigabytesPerSecond)
    ops.push(result)
    note(`${result.op} ${result.shape}, ${result.tokens} tokens: ${result.microseconds.toFixed(0)} µs`)
  }
  stream.dispose()
}

const models: BenchResult[] = []
const skipped: string[] = []
for (const name of values.model) {
  const { available } = device.memory()
  if (name.startsWith('synthetic:nano-30b') && available < needed) {
    skipped.push(`${name}: ${(available / 1e9).toFixed(1)} GB of memory are available, it wants ${needed / 1e9}`)
    note(skipped.at(-1) ?? '')
    continue
  }
  const result = await bench(name, { threads, prompt: promptOf(name), generate })
  models.push(result)
  note(`${name}: decode ${result.decode.tokensPerSecond.toFixed(2)} tokens/s`)
}

let peer: PeerResult | undefined
if (peerOptions) {
  try {
    peer = await runPeer(peerOptions.program, { model: peerOptions.model, prompt, generate, threads })
    note(`${peer.program}: decode ${peer.decode.tokensPerSecond.toFixed(2)} tokens/s`)
  } catch (error) {
    // Minutes of measurements are not lost with it.
    skipped.push(`the peer: ${error instanceof Error ? error.message : error}`)
    note(skipped.at(-1) ?? '')
    process.exitCode = 1
  }
}
const report: CpuReport = {
  cpu: cpus()[0]?.model ?? 'unknown',
  variant: Device.cpuVariant(),
  threads,
  load: { before, after: loadavg()[0] ?? 0 },
  rooflineGBs: roofline.gigabytesPerSecond,
  rooflineBytes: roofline.bytes,
  ops,
  models,
  skipped,
  ...(peer && { peer }),
}
process.stdout.write(`${describeReport(report)}\n`)
if (values.out === undefined) {
  const file = (path: string) => fileURLToPath(new URL(path, import.meta.url))
  await writeFile(file('results/cpu.json'), `${JSON.stringify(report, null, 2)}\n`)
  await writeFile(
    file('README.md'),
    insertReport(await readFile(file('README.md'), 'utf8'), describeReport(report), cpuMarks),
  )
} else {
  await writeFile(values.out, `${JSON.stringify(report, null, 2)}\n`)
}
