/** The low level, for benchmarks and research: the six nouns of the runtime. */
export { Buffer } from './buffer.js'
export { Device, type DeviceName } from './device.js'
export { CancelFlag, Graph } from './graph.js'
export { type FileTensor, MappedFile } from './mapped-file.js'
export {
  type AttentionParameters,
  type LinearOptions,
  type MambaParameters,
  type MambaState,
  type MoeParameters,
  resultBytes,
  type SamplingState,
  type WeightPart,
} from './op-parameters.js'
export { Stream, type StreamOptions } from './stream.js'
export { type DType, dtypeBytes, Tensor } from './tensor.js'
export { Weight, type WeightFormat, type WeightLayout, type WeightShape } from './weight.js'
