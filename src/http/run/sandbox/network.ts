import { z } from 'zod'
import { PlatformError } from '../../../errors.ts'
import { isListener, type SandboxProcess } from '../../../sandboxes/processes.ts'
import type { SandboxApi } from './api.ts'
import { json, readJsonBody, type SandboxAnswer, type SandboxCall } from './call.ts'
import { postFromInside } from './callbacks.ts'

const monitorBody = z.object({ callback: z.string().min(1).max(2048) })

/** Ports that a process, or anything it started, has open. An unknown process has none. */
export async function listPorts(call: SandboxCall, text: string): Promise<SandboxAnswer> {
  const pid = pidOf(text)
  const descent = await find(call, pid)?.descent()
  const ports = (descent?.sockets ?? []).map((socket) => ({
    pid: socket.pid,
    protocol: socket.protocol,
    localAddr: socket.localAddress,
    localPort: socket.localPort,
    remoteAddr: isListener(socket) ? '' : socket.remoteAddress,
    remotePort: socket.remotePort,
    state: socket.state,
    processName: socket.processName,
  }))
  return json({ pid, ports })
}

/** From now on each port that the process opens is posted to the callback, which leaves as what its programs send. */
export async function monitorPorts(
  call: SandboxCall,
  text: string,
  { addressesOf, build }: Pick<SandboxApi, 'addressesOf' | 'build'>,
): Promise<SandboxAnswer> {
  const pid = pidOf(text)
  const { callback } = await readJsonBody(call, monitorBody)
  const url = URL.parse(callback)
  if (url === null || !/^https?:$/.test(url.protocol) || url.username !== '' || url.password !== '') {
    const what = callback.slice(0, 200)
    throw new PlatformError(
      'bad_request',
      `callback: "${what}" is not an http or https URL without a user name`,
    )
  }
  const process = find(call, pid)
  if (!process) throw new PlatformError('unprocessable', `process ${pid} not found`)
  const { instance, processes } = call.lease
  const way = { instance, addressesOf, version: build.version }
  processes.monitors.start(process, (port, signal) =>
    postFromInside(url, JSON.stringify({ pid, port }), way, signal),
  )
  return json({ pid, message: 'Port monitoring started' })
}

export async function stopMonitoring(call: SandboxCall, text: string): Promise<SandboxAnswer> {
  const pid = pidOf(text)
  const process = find(call, pid)
  if (process) call.lease.processes.monitors.stop(process)
  return json({ pid, message: 'Port monitoring stopped' })
}

/** The sandbox has no network interface that a tunnel could take the place of. */
export function refuseTunnel(): SandboxAnswer {
  throw new PlatformError(
    'unprocessable',
    'tunnels are not possible here: programs of a sandbox reach the network through the relay of the platform',
  )
}

export function noTunnel(): SandboxAnswer {
  throw new PlatformError('bad_request', 'no tunnel is running')
}

function find({ lease }: SandboxCall, pid: number): SandboxProcess | null {
  const process = lease.processes.find(String(pid))
  return process?.pid === pid ? process : null
}

/** @throws bad_request */
function pidOf(text: string): number {
  if (/^\d{1,9}$/.test(text)) return Number(text)
  throw new PlatformError('bad_request', `pid: "${text.slice(0, 40)}" is not the id of a process`)
}
