import { type Dtype, dtypeBytes } from '../../lib/checkpoint/safetensors.js'
import { below, mutateBytes, mutateText, pick, type Random } from '../helpers/mutate.js'
import { headerOf, rawSafetensors, type TestTensor } from '../helpers/safetensors.js'
import { jsonText, type Mutated } from './mutate-json.js'

interface Entry {
  dtype: string
  shape: unknown[]
  data_offsets: unknown[]
}

interface Parsed {
  header: Record<string, Entry>
  data: Uint8Array
}

const sizes = [0, 1, -1, 1.5, 2 ** 16, 2 ** 31, 2 ** 32, 2 ** 52, 2 ** 53, 2 ** 63, 1e300, null, '1', []]
const lengths = [
  0n,
  1n,
  2n,
  7n,
  0x7fn,
  0xffn,
  100_000_000n,
  100_000_001n,
  2n ** 31n,
  2n ** 53n,
  2n ** 63n,
  2n ** 64n - 1n,
]
const dtypes = [...Object.keys(dtypeBytes), 'F4', 'f32', '', '__proto__', 'toString'] as const

function parse(bytes: Uint8Array): Parsed {
  const length = Number(new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true))
  const { __metadata__: _, ...header } = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + length)))
  return { header, data: bytes.subarray(8 + length) }
}

function tensorsOf({ header, data }: Parsed): Record<string, TestTensor> {
  return Object.fromEntries(
    Object.entries(header).map(
      ([
        name,
        {
          dtype,
          shape,
          data_offsets: [from, to],
        },
      ]) => [name, { dtype: dtype as Dtype, shape: shape as number[], data: data.slice(from as number, to as number) }],
    ),
  )
}

function build(tensors: Readonly<Record<string, TestTensor>>): Uint8Array {
  const parts = Object.values(tensors).map(({ data }) => data ?? new Uint8Array(0))
  return rawSafetensors(jsonText(headerOf(tensors)), new Uint8Array(Buffer.concat(parts)))
}

/** Changes the header's words and numbers: most of it must be refused. */
function damageHeader({ header, data }: Parsed, random: Random): Mutated<Uint8Array> {
  const copy = structuredClone(header) as Record<string, Entry>
  const name = pick(random, Object.keys(copy))
  const other = pick(random, Object.keys(copy))
  const entry = copy[name] as Entry
  const [from = 0, to = 0] = entry.data_offsets as number[]
  const changes: [string, () => void][] = [
    ['another dtype', () => Object.assign(entry, { dtype: pick(random, dtypes) })],
    ['an awkward extent', () => (entry.shape[below(random, entry.shape.length + 1)] = pick(random, sizes))],
    ['an extent less', () => entry.shape.pop()],
    ['an extent of one more', () => entry.shape.push(1)],
    ['the extents in another order', () => entry.shape.reverse()],
    ['many extents', () => Object.assign(entry, { shape: Array(pick(random, [9, 100, 50_000])).fill(1) })],
    ['an awkward offset', () => (entry.data_offsets[below(random, 2)] = pick(random, sizes))],
    ['a shifted range', () => Object.assign(entry, { data_offsets: [from + 1, to + 1] })],
    ['a longer range', () => Object.assign(entry, { data_offsets: [from, to + pick(random, [1, 8, 4096, 2 ** 40])] })],
    ['a range of nothing', () => Object.assign(entry, { data_offsets: [from, from] })],
    ['a range from end to start', () => entry.data_offsets.reverse()],
    ['an offset more', () => entry.data_offsets.push(to)],
    ['the range of another', () => Object.assign(entry, { data_offsets: copy[other]?.data_offsets })],
    ['an unknown field', () => Object.assign(entry, { format: 'pt' })],
    ['nothing', () => delete copy[name]],
    ['the fields of another', () => (copy[name] = structuredClone(copy[other]) as Entry)],
    [
      'another name',
      () => {
        delete copy[name]
        copy[`${name}x`] = entry
      },
    ],
    ['a twin', () => (copy[`${name}.twin`] = entry)],
    ['a number in its place', () => (copy[name] = 7 as unknown as Entry)],
    [
      'metadata beside it',
      () => (copy.__metadata__ = pick(random, [{}, { a: 'b' }, { a: 1 }, []]) as unknown as Entry),
    ],
  ]
  const [what, change] = pick(random, changes)
  change()
  return { value: rawSafetensors(jsonText(copy), data), what: `${name} has ${what}` }
}

/** Bytes that read as numbers no weight should have. */
function poison(tensor: TestTensor, random: Random): [string, Uint8Array] {
  const { dtype, data = new Uint8Array(0) } = tensor
  const bytes = Uint8Array.from(data)
  const view = new DataView(bytes.buffer)
  const width = dtypeBytes[dtype]
  const specials: Partial<Record<Dtype, number[]>> = {
    F32: [0x7fc00000, 0x7f800000, 0xff800000, 0xbf800000, 0, 0x80000000, 1, 0x7f7fffff, 0xff7fffff, 0x7f800001],
    BF16: [0x7fc0, 0x7f80, 0xff80, 0xbf80, 0, 0x8000, 1, 0x7f7f, 0xff7f],
    F16: [0x7e00, 0x7c00, 0xfc00, 0xbc00, 0, 1, 0x7bff],
    F8_E4M3: [0x7f, 0xff, 0x80, 0xbf, 0, 1, 0x7e, 0xfe],
    U8: [0, 0xff, 0x80, 0x77],
  }
  const value = pick(random, specials[dtype] ?? [0, 0xff])
  const write = (at: number) => {
    if (width === 4) view.setUint32(at, value, true)
    else if (width === 2) view.setUint16(at, value, true)
    else if (width === 1) view.setUint8(at, value)
  }
  const count = bytes.length / width
  if (random() < 0.4) for (let index = 0; index < count; index++) write(index * width)
  else if (count > 0) for (let times = 1 + below(random, 3); times > 0; times--) write(below(random, count) * width)
  return [`0x${value.toString(16)}`, bytes]
}

/** Changes tensors and keeps the file itself in order, so that it is the model's reader that must notice. */
function damageTensors(parsed: Parsed, random: Random): Mutated<Uint8Array> {
  const tensors = tensorsOf(parsed)
  const names = Object.keys(tensors)
  const scales = names.filter((name) => /scale|A_log|\.D$|dt_bias|norm|gate/.test(name))
  const name = pick(random, random() < 0.5 && scales.length > 0 ? scales : names)
  const tensor = tensors[name] as TestTensor
  const { dtype, shape, data = new Uint8Array(0) } = tensor
  const alike = names.filter((other) => other !== name && tensors[other]?.data?.length === data.length)
  const other = pick(random, random() < 0.5 && alike.length > 0 ? alike : names)
  const resized = (next: readonly number[], type: Dtype = dtype): TestTensor => {
    const bytes = next.reduce((product, extent) => product * extent, dtypeBytes[type])
    const filled = new Uint8Array(bytes)
    for (let at = 0; at < bytes && data.length > 0; at += data.length) filled.set(data.subarray(0, bytes - at), at)
    return { dtype: type, shape: next, data: filled }
  }
  const kind = below(random, 12)
  let what = ''
  if (kind < 4) {
    const [value, bytes] = poison(tensor, random)
    tensors[name] = { ...tensor, data: bytes }
    what = `${name} holds ${value}`
  } else if (kind < 6) {
    const kept = tensors[other] as TestTensor
    tensors[other] = tensor
    tensors[name] = kept
    what = `${name} and ${other} swapped`
  } else if (kind === 6) {
    tensors[name] = resized(shape.map((extent, axis) => (axis === 0 ? extent + pick(random, [-1, 1]) : extent)))
    what = `${name} has another number of rows`
  } else if (kind === 7) {
    tensors[name] = resized(pick(random, [shape.toReversed(), [...shape, 1], shape.slice(1), [], [0], [1]]))
    what = `${name} has another shape`
  } else if (kind === 8) {
    const type = pick(random, Object.keys(dtypeBytes) as Dtype[])
    tensors[name] = resized(shape, type)
    what = `${name} is ${type}`
  } else if (kind === 9) {
    delete tensors[name]
    what = `${name} is missing`
  } else if (kind === 10) {
    tensors[pick(random, [`${name}_2`, 'mtp.layers.0.weight', 'model.norm_f.weight', 'x'])] = tensor
    what = `${name} is there twice`
  } else {
    tensors[name] = { ...tensor, data: mutateBytes(data, random).slice(0, data.length) }
    if (tensors[name]?.data?.length !== data.length) tensors[name] = { ...tensor, data: data.map((byte) => ~byte) }
    what = `${name} holds other bytes`
  }
  return { value: build(tensors), what }
}

function damageBytes(bytes: Uint8Array, random: Random): Mutated<Uint8Array> {
  const { data } = parse(bytes)
  const start = bytes.length - data.length
  const kind = below(random, 6)
  if (kind === 0) {
    const length = pick(random, [
      ...lengths,
      BigInt(start - 8 + pick(random, [-8, -1, 1, 8])),
      BigInt(bytes.length - 8),
    ])
    const copy = Uint8Array.from(bytes)
    new DataView(copy.buffer).setBigUint64(0, length, true)
    return { value: copy, what: `a header of ${length} bytes` }
  }
  if (kind === 1) {
    const end = pick(random, [
      0,
      1,
      7,
      8,
      9,
      10,
      start - 1,
      start,
      start + 1,
      bytes.length - 1,
      below(random, bytes.length),
    ])
    return { value: bytes.slice(0, end), what: `cut at ${end}` }
  }
  if (kind === 2) {
    const more = new Uint8Array(bytes.length + pick(random, [1, 16, 4096]))
    more.set(bytes)
    return { value: more, what: 'longer' }
  }
  if (kind === 3) {
    const text = new TextDecoder().decode(bytes.subarray(8, start))
    return { value: rawSafetensors(mutateText(text, random), data), what: 'other text in the header' }
  }
  return { value: mutateBytes(bytes, random, kind === 4 ? start : bytes.length), what: 'other bytes' }
}

/** A safetensors file with one thing wrong, or several. */
export function mutateSafetensors(bytes: Uint8Array, random: Random): Mutated<Uint8Array> {
  const kind = below(random, 10)
  if (kind < 3) return damageBytes(bytes, random)
  const parsed = parse(bytes)
  return kind < 6 ? damageHeader(parsed, random) : damageTensors(parsed, random)
}
