import { execFile } from 'node:child_process'
import { readFile } from 'node:fs/promises'
import { availableParallelism, cpus, freemem, totalmem } from 'node:os'
import { promisify } from 'node:util'

const run = promisify(execFile)

/** CPU flags that kernels have variants for or will want, as Linux names them. */
const wanted = [
  'avx2',
  'fma',
  'f16c',
  'avx512f',
  'avx512bw',
  'avx512dq',
  'avx512vl',
  'avx512_vnni',
  'avx512_bf16',
  'amx_bf16',
  'amx_int8',
]
const wantedArm = ['asimd', 'asimddp', 'fphp', 'bf16', 'i8mm', 'sve', 'sve2']

/** What `nibblet doctor` reports of the CPU. */
export interface CpuReport {
  model: string
  /** Hardware threads that this process may use. */
  threads: number
  /** Physical cores, or `undefined` where the system does not say. */
  cores: number | undefined
  /** Instruction sets; `undefined` where the system does not say. */
  features: string[] | undefined
  memory: { total: number; free: number }
}

/** What `nibblet doctor` reports of the GPUs. */
export interface GpuReport {
  /** Version of the NVIDIA driver, or why there is none. */
  driver: string | undefined
  reason: string | undefined
  devices: { name: string; computeCapability: string; memory: string }[]
}

/** Reads the CPU's name, cores and instruction sets. */
export async function describeCpu(): Promise<CpuReport> {
  const info = await readFile('/proc/cpuinfo', 'utf8').catch(() => undefined)
  const flags = /^(?:flags|Features)\s*:(.*)$/m
    .exec(info ?? '')?.[1]
    ?.trim()
    .split(/\s+/)
  const names = process.arch === 'arm64' ? wantedArm : wanted
  const pairs = (info ?? '').split('\n\n').map((block) => {
    const field = (name: string) => new RegExp(`^${name}\\s*:(.*)$`, 'm').exec(block)?.[1]?.trim()
    const [socket, core] = [field('physical id'), field('core id')]
    return socket === undefined || core === undefined ? undefined : `${socket}/${core}`
  })
  const cores = new Set(pairs.filter((pair) => pair !== undefined)).size
  return {
    model: cpus()[0]?.model ?? 'unknown',
    threads: availableParallelism(),
    cores: cores === 0 ? undefined : cores,
    features: flags === undefined ? undefined : names.filter((name) => flags.includes(name)),
    memory: { total: totalmem(), free: freemem() },
  }
}

/** Asks the NVIDIA driver, if there is one, for its version and GPUs. */
export async function describeGpus(signal: AbortSignal): Promise<GpuReport> {
  const none = (reason: string): GpuReport => ({ driver: undefined, reason, devices: [] })
  const query = ['--query-gpu=driver_version,name,compute_cap,memory.total', '--format=csv,noheader']
  let stdout: string
  try {
    stdout = (await run('nvidia-smi', query, { timeout: 10_000, signal })).stdout
  } catch (error) {
    if (signal.aborted) throw signal.reason
    const failure = error as NodeJS.ErrnoException & { stderr?: string; stdout?: string }
    if (failure.code === 'ENOENT') return none('no NVIDIA driver (nvidia-smi was not found)')
    const said = (failure.stdout || failure.stderr || failure.message).trim().split('\n')[0]
    return none(`nvidia-smi failed: ${said}`)
  }
  const devices = stdout
    .trim()
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => line.split(',').map((cell) => cell.trim()))
  const driver = devices[0]?.[0]
  if (driver === undefined) return none('the NVIDIA driver lists no GPU')
  return {
    driver,
    reason: undefined,
    devices: devices.map(([, name = '', computeCapability = '', memory = '']) => ({ name, computeCapability, memory })),
  }
}

/** The C library that Node runs with. */
export function describeLibc(): string | undefined {
  if (process.platform !== 'linux') return undefined
  const report = process.report?.getReport() as { header?: { glibcVersionRuntime?: string } } | undefined
  const glibc = report?.header?.glibcVersionRuntime
  return glibc === undefined ? 'not glibc (musl?)' : `glibc ${glibc}`
}
