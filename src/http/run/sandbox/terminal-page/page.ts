import { FitAddon } from '@xterm/addon-fit'
import { type ITheme, Terminal } from '@xterm/xterm'

/** Runs in the browser: one terminal that finds its way back to its session whenever the connection is lost. */

const retryMsFirst = 300
const retryMsMax = 5000
const closeNormal = 1000
/** The sandbox or the credential is not there: trying again by itself would not help. */
const failuresMax = 6

const query = new URLSearchParams(location.search)
const sessionId = query.get('sessionId') || 'default'
const element = (id: string) => document.getElementById(id) as HTMLElement
const dark = matchMedia('(prefers-color-scheme: dark)')

const themes: Record<'dark' | 'light', ITheme> = {
  dark: {
    background: '#14161a',
    foreground: '#e4e6ea',
    cursor: '#7fd1bd',
    cursorAccent: '#14161a',
    selectionBackground: '#33514c',
    black: '#252932',
    red: '#ef7f73',
    green: '#6fcf97',
    yellow: '#e5b567',
    blue: '#7cacf8',
    magenta: '#c792ea',
    cyan: '#7fd1bd',
    white: '#c9ced8',
    brightBlack: '#6c7482',
    brightRed: '#ff9d93',
    brightGreen: '#93e6b4',
    brightYellow: '#f5d08c',
    brightBlue: '#a3c6ff',
    brightMagenta: '#dcb3f7',
    brightCyan: '#a4e6d6',
    brightWhite: '#ffffff',
  },
  light: {
    background: '#fbfaf8',
    foreground: '#25231f',
    cursor: '#2f6f62',
    cursorAccent: '#fbfaf8',
    selectionBackground: '#cfe3dd',
    black: '#25231f',
    red: '#b3372b',
    green: '#2f7d4f',
    yellow: '#8f5c00',
    blue: '#2d5fb8',
    magenta: '#8a3fa0',
    cyan: '#1f7468',
    white: '#6d685f',
    brightBlack: '#8d877c',
    brightRed: '#cc4a3d',
    brightGreen: '#3a9560',
    brightYellow: '#a86e08',
    brightBlue: '#3f74d1',
    brightMagenta: '#a054b8',
    brightCyan: '#2a8b7d',
    brightWhite: '#47443d',
  },
}

const terminal = new Terminal({
  cursorBlink: true,
  fontFamily: 'ui-monospace, "SF Mono", "Cascadia Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace',
  fontSize: 14,
  lineHeight: 1.15,
  scrollback: 10_000,
  theme: themes[dark.matches ? 'dark' : 'light'],
  macOptionIsMeta: true,
})
const fit = new FitAddon()
terminal.loadAddon(fit)
terminal.open(element('terminal'))
element('session').textContent = sessionId === 'default' ? '' : `session ${sessionId}`
dark.addEventListener('change', () => {
  terminal.options.theme = themes[dark.matches ? 'dark' : 'light']
})

let socket: WebSocket | null = null
let retryMs = retryMsFirst
let failures = 0
let restart: () => void = () => {}

function send(
  message: { type: 'input'; data: string } | { type: 'resize'; cols: number; rows: number },
): void {
  if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify(message))
}

function show(state: 'connecting' | 'connected' | 'ended' | 'failed', status: string): void {
  document.body.dataset.state = state
  element('status').textContent = status
}

function notice(text: string, action: string, act: () => void): void {
  element('notice-text').textContent = text
  element('notice-action').textContent = action
  element('notice').hidden = false
  restart = () => {
    element('notice').hidden = true
    restart = () => {}
    act()
    terminal.focus()
  }
}

function address(): string {
  const url = new URL(`${location.pathname.replace(/\/$/, '')}/ws`, location.href)
  url.protocol = location.protocol === 'https:' ? 'wss:' : 'ws:'
  for (const [name, value] of query) url.searchParams.set(name, value)
  url.searchParams.set('cols', String(terminal.cols))
  url.searchParams.set('rows', String(terminal.rows))
  return url.href
}

function connect(): void {
  show('connecting', failures === 0 ? 'Connecting' : 'Reconnecting')
  const opened = new WebSocket(address())
  socket = opened
  opened.addEventListener('open', () => {
    // What was there is sent again.
    terminal.reset()
    failures = 0
    retryMs = retryMsFirst
    show('connected', 'Connected')
  })
  opened.addEventListener('message', ({ data }) => {
    const message = JSON.parse(String(data)) as { type: string; data: string }
    if (message.type === 'output') terminal.write(message.data)
    else if (message.type === 'error') terminal.write(`\r\n\x1b[31m${message.data}\x1b[0m\r\n`)
  })
  opened.addEventListener('close', ({ code, reason }) => {
    if (socket !== opened) return
    socket = null
    if (code === closeNormal) {
      show('ended', 'Ended')
      notice(`${reason || 'Shell exited'}.`, 'Start a new shell', connect)
    } else if (++failures >= failuresMax) {
      show('failed', 'Disconnected')
      notice('The sandbox cannot be reached.', 'Try again', () => {
        failures = 0
        connect()
      })
    } else {
      show('connecting', 'Reconnecting')
      setTimeout(connect, retryMs)
      retryMs = Math.min(retryMs * 2, retryMsMax)
    }
  })
}

terminal.onData((data) => {
  if (data === '\r' && !element('notice').hidden) restart()
  else send({ type: 'input', data })
})
terminal.onBinary((data) => send({ type: 'input', data }))
terminal.onResize(({ cols, rows }) => {
  element('size').textContent = `${cols} x ${rows}`
  send({ type: 'resize', cols, rows })
})
terminal.onTitleChange((title) => {
  document.title = title === '' ? document.title : title
})
element('notice-action').addEventListener('click', () => restart())
new ResizeObserver(() => fit.fit()).observe(element('terminal'))

fit.fit()
element('size').textContent = `${terminal.cols} x ${terminal.rows}`
terminal.focus()
connect()
