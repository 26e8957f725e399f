import { Device } from '../core/device.js'
import { NibbletError } from '../errors.js'
import type { Arguments } from './args.js'
import { type Command, type Context, takePositionals } from './command.js'
import { type CpuReport, describeCpu, describeGpus, describeLibc, type GpuReport } from './machine.js'

export const doctorCommand: Command = {
  name: 'doctor',
  usage: '[--json]',
  summary: 'Shows CPU, GPUs, driver and native binary: what would be used, and why.',
  details: ['Needs no working binary. Exits with 1 when the binary cannot be used, else with 0.'],
  flags: { json: { help: 'print JSON' } },
  run,
}

type Binary =
  | { usable: true; path: string; reason: string; variant: string | undefined }
  | { usable: false; reason: string }

interface Diagnosis {
  nibblet: string
  node: { version: string; napi: string; platform: string; arch: string; libc: string | undefined }
  cpu: CpuReport
  gpu: GpuReport
  binary: Binary
  /** What `device: 'auto'` stands for here. */
  auto: { device: string | undefined; reason: string }
  /** Variables of the environment that change any of this. */
  environment: Record<string, string>
}

const sources = {
  environment: 'named by NIBBLET_BINARY',
  build: 'built in this checkout, which comes before an installed package',
  package: 'the platform package; no checkout build was found',
} as const

async function findBinary({ runtime }: Context): Promise<Binary> {
  try {
    const { path, source, binding } = await runtime.locateBinding()
    const { cpuVariant } = binding as { cpuVariant?: () => string }
    return { usable: true, path, reason: sources[source], variant: cpuVariant?.() }
  } catch (error) {
    if (!NibbletError.is(error)) throw error
    return { usable: false, reason: `${error.message} (${error.code})` }
  }
}

async function run(args: Arguments, context: Context): Promise<number> {
  takePositionals(args, [])
  const { runtime, output, io, signal } = context
  const [cpu, gpu, binary] = await Promise.all([describeCpu(), describeGpus(signal), findBinary(context)])
  const names = ['NIBBLET_BINARY', 'NIBBLET_CPU', 'NIBBLET_DEVICE']
  const environment = names.flatMap((name) => (io.env[name] === undefined ? [] : [[name, io.env[name]] as const]))
  const diagnosis: Diagnosis = {
    nibblet: runtime.version,
    node: {
      version: process.version,
      napi: process.versions.napi ?? 'unknown',
      platform: process.platform,
      arch: process.arch,
      libc: describeLibc(),
    },
    cpu,
    gpu,
    binary,
    auto: chooseDevice(binary, gpu),
    environment: Object.fromEntries(environment),
  }
  await output.write(args.on('json') ? `${JSON.stringify(diagnosis, undefined, 2)}\n` : describe(diagnosis))
  return binary.usable ? 0 : 1
}

/** This version computes on the CPU alone, whatever GPUs there are. */
function chooseDevice(binary: Binary, gpu: GpuReport): Diagnosis['auto'] {
  if (!binary.usable) return { device: undefined, reason: 'there is no usable binary' }
  const gpus = gpu.devices.length === 0 ? '' : `, so the ${gpu.devices.length} GPU(s) above are not used`
  if (Device.cudaDevices() === 0) return { device: 'cpu', reason: `this build or this machine has no GPU${gpus}` }
  try {
    return { device: 'cuda:0', reason: Device.open('cuda:0').model }
  } catch (error) {
    return { device: 'cpu', reason: error instanceof Error ? error.message : String(error) }
  }
}

function gigabytes(bytes: number): string {
  return `${(bytes / 1e9).toFixed(1)} GB`
}

function describe({ nibblet, node, cpu, gpu, binary, auto, environment }: Diagnosis): string {
  const row = (name: string, ...values: (string | undefined)[]) =>
    `${name.padEnd(10)}${values.filter((value) => value !== undefined && value !== '').join(', ')}\n`
  const cores = cpu.cores === undefined ? undefined : `${cpu.cores} cores`
  const features =
    cpu.features === undefined ? 'unknown on this system' : cpu.features.join(' ') || 'none of those used'
  return [
    row('nibblet', nibblet),
    row('node', node.version, `Node-API ${node.napi}`, `${node.platform} ${node.arch}`, node.libc),
    row('cpu', cpu.model, cores, `${cpu.threads} threads`),
    row('', `features: ${features}`),
    row('memory', gigabytes(cpu.memory.total), `${gigabytes(cpu.memory.free)} free`),
    row('gpu', gpu.driver === undefined ? gpu.reason : `driver ${gpu.driver}`),
    ...gpu.devices.map(({ name, computeCapability, memory }) => row('', name, `compute ${computeCapability}`, memory)),
    binary.usable ? row('binary', binary.path, binary.reason) : row('binary', `NOT USABLE: ${binary.reason}`),
    binary.usable && binary.variant !== undefined ? row('', `CPU kernels: ${binary.variant}`) : '',
    row('auto', auto.device === undefined ? `no device: ${auto.reason}` : `${auto.device}: ${auto.reason}`),
    ...Object.entries(environment).map(([name, value]) => row('set', `${name}=${value}`)),
  ].join('')
}
