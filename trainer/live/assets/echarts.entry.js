// What the pages draw with of Apache ECharts; `make charts` makes echarts.min.js of it.
import { init, use } from "echarts/core";
import { BarChart, CustomChart, LineChart, ScatterChart } from "echarts/charts";
import { GridComponent, MarkLineComponent, TooltipComponent } from "echarts/components";
import { SVGRenderer } from "echarts/renderers";
use([BarChart, CustomChart, LineChart, ScatterChart]);
use([GridComponent, MarkLineComponent, TooltipComponent, SVGRenderer]);
export { init };
