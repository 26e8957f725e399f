// npm run bench:gpu [-- --device cuda:N] [--model NAME] [--batch N,N…] [--context N,N…] [--no-ops] [--generate N] [--out FILE]
import { readFile, writeFile } from 'node:fs/promises'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { type BenchResult, bench } from '../lib/bench/bench.js'
import { measureRoofline } from '../lib/bench/roofline.js'
import { Device, type DeviceName } from '../lib/core/device.js'
import { describeGpuReport, type GpuReport, gpuMarks } from './gpu-report.js'
import { layerCases } from './layers.js'
import { gpuCases, measure, type OpResult } from './ops.js'
import { insertReport } from './report.js'

const { values } = parseArgs({
  options: {
    device: { type: 'string', default: 'cuda:0' },
    model: { type: 'string', default: 'synthetic:nano-30b' },
    batch: { type: 'string', default: '1,8,32,64' },
    context: { type: 'string', default: '32768' },
    prompt: { type: 'string', default: '64' },
    generate: { type: 'string', default: '128' },
    'no-ops': { type: 'boolean', default: false },
    out: { type: 'string' },
  },
})
const numbers = (list: string) => list.split(',').map(Number)
const note = (text: string) => process.stderr.write(`${text}\n`)

const name = values.device as DeviceName
const device = Device.open(name)
const roofline = await measureRoofline(device)
note(`${device.model}: reads ${roofline.gigabytesPerSecond.toFixed(0)} GB/s`)

const ops: OpResult[] = []
if (!values['no-ops']) {
  const stream = device.stream()
  for (const make of [...layerCases, ...gpuCases]) {
    const result = await measure(stream, make, roofline.gigabytesPerSecond)
    ops.push(result)
    note(`${result.op} ${result.shape}, ${result.tokens} tokens: ${result.microseconds.toFixed(1)} µs`)
  }
  stream.dispose()
}

const models: BenchResult[] = []
const [prompt, generate] = [Number(values.prompt), Number(values.generate)]
const runs = [
  ...numbers(values.batch).map((batch) => ({ batch, prompt })),
  // The last tokens of a context are what it costs to have one.
  ...numbers(values.context).map((context) => ({ batch: 1, prompt: context - generate })),
]
for (const run of runs) {
  const result = await bench(values.model, { device: name, generate, ...run })
  models.push(result)
  note(`batch ${run.batch} after ${run.prompt}: decode ${result.decode.tokensPerSecond.toFixed(0)} tokens/s`)
}

const report: GpuReport = { gpu: device.model, rooflineGBs: roofline.gigabytesPerSecond, ops, models }
const text = describeGpuReport(report)
process.stdout.write(`${text}\n`)
if (values.out === undefined) {
  const file = (path: string) => fileURLToPath(new URL(path, import.meta.url))
  await writeFile(file('results/gpu.json'), `${JSON.stringify(report, null, 2)}\n`)
  await writeFile(file('README.md'), insertReport(await readFile(file('README.md'), 'utf8'), text, gpuMarks))
} else {
  await writeFile(values.out, `${JSON.stringify(report, null, 2)}\n`)
}
