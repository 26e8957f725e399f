/** nibblet: Nemotron-H language models from NVFP4 checkpoints, inside the Node process. */
export type { DeviceName } from './core/device.js'
export {
  BindingError,
  type Code,
  DeviceError,
  ModelError,
  NibbletError,
  RequestError,
  StateError,
} from './errors.js'
export {
  type AnyTool,
  type ChatOptions,
  type ChatPart,
  type ChatStream,
  type FinishReason,
  type GenerateOptions,
  type Reply,
  type StandardSchema,
  type Timings,
  type TokenLogprob,
  type Tool,
  type ToolCallContext,
  type ToolDefinition,
  tool,
  type Usage,
} from './generate/index.js'
export { loadModel } from './load-model.js'
export type { LoadOptions, LoadProgress, Logger } from './load-options.js'
export type { MemoryUsage, Model, ModelInfo } from './model.js'
export type { AssistantMessage, Message, ToolCall, ToolSpec } from './text/messages.js'
