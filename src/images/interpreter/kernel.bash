# A shell that keeps its variables. A request is words that end in NUL: how many variables, these, and the code.
_kernel_in=$1 _kernel_out=$2
set --
trap : INT
while IFS= read -r -d '' _kernel_count <&"$_kernel_in"; do
  _kernel_restore=()
  for ((_kernel_at = 0; _kernel_at < _kernel_count; _kernel_at++)); do
    IFS= read -r -d '' _kernel_pair <&"$_kernel_in"
    _kernel_restore+=("$(declare -p "${_kernel_pair%%=*}" 2>/dev/null || printf 'unset %q' "${_kernel_pair%%=*}")")
    export "${_kernel_pair?}"
  done
  IFS= read -r -d '' _kernel_code <&"$_kernel_in"
  eval "eval \"\$_kernel_code\" $_kernel_in<&- $_kernel_out>&-"
  _kernel_status=$?
  for _kernel_pair in "${_kernel_restore[@]}"; do eval "$_kernel_pair"; done
  if ((_kernel_status != 0)); then
    printf '{"type":"error","name":"ExitStatus","value":"%d","traceback":""}\n' "$_kernel_status" >&"$_kernel_out"
  fi
  printf '{"type":"done"}\n' >&"$_kernel_out"
done
